"""Operators find any job, owner and picture, see all about it, and act; every action is in the audit log."""

import csv
import html
import io
import re
from datetime import timedelta

import pytest
import sqlalchemy as sa

from core.clock import utcnow
from jobs import service
from jobs.admission import pauses, places, workers
from jobs.owners import accounts, audit_log, limits, search, tokens
from notifications import outbox
from notifications.tables import MESSAGE
from tests.contract.web.conftest import Api
from tests.contract.web.test_page_matrix import HERE
from tests.queries import queries_of
from web.pages.operators import audit
from web.pages.session import COOKIE


@pytest.fixture
def operator(api: Api) -> dict[str, str]:
    """The headers of an operator's browser."""
    api.client.cookies.clear()
    answer = api.call("POST", "/sign-in", headers=HERE, data={"token": api.token(None, "operate")})
    api.client.cookies.clear()
    return {**HERE, "cookie": f"{COOKIE}={answer.cookies[COOKIE]}"}


def actions(api: Api) -> list[tuple[str, str]]:
    """Who did what, newest first, as far as operators did it."""
    return [(one.actor, one.action) for one in audit_log.list_entries(api.services) if one.actor == "token"]


def test_everything_is_found_by_the_beginning_of_its_id_or_name(api: Api, operator: dict[str, str]) -> None:
    images = api.upload(api.token("ada"), 6)
    job_id = str(api.train(api.token("ada"), images).json()["id"])
    accounts.grant(api.services, "Bob/Smith", 5)
    for text, kind in ((job_id[:20], "jobs"), ("REX", "jobs"), ("ad", "owners"), (images[0], "pictures")):
        assert getattr(search.search(api.services, text), kind), text
    assert search.search(api.services, "smith").owners == ["Bob/Smith"]
    assert search.search(api.services, "100%").is_empty
    assert search.search(api.services, " ").is_empty
    page = api.call("GET", "/operators/search?q=smith", headers=operator).text
    [address] = re.findall(r'href="(/operators/owners/[^"]+)"', page)
    assert "Bob/Smith" in api.call("GET", address, headers=operator).text
    assert api.call("GET", "/operators/owners/nobody", headers=operator).status_code == 404


def test_a_search_asks_the_database_as_often_for_many_jobs_as_for_one(
    api: Api, operator: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = api.upload(api.token("ada"), 6)
    # Places are computed again when they are some seconds old: on a slow machine, in one of the searches.
    monkeypatch.setattr(places, "_CACHE_S", 1e9)
    monkeypatch.setattr(places, "_LEAST_AGE_S", 1e9)
    api.train(api.token("ada"), images)
    search.search(api.services, "ada")
    counts = []
    for _ in range(3):
        api.train(api.token("ada"), images)
        with queries_of(api.services.database) as queries:
            found = search.search(api.services, "ada").jobs
        counts.append(len(queries))
    assert len(found) == 4
    assert counts[0] == counts[2], counts


def test_the_letters_of_an_old_job_are_found_behind_many_newer_ones(api: Api) -> None:
    job_id = str(api.train(api.token("ada"), api.upload(api.token("ada"), 6)).json()["id"])
    with api.services.database.writing() as session:
        for number in range(205):
            about = None if number else job_id
            outbox.put(session, "launch", job_id=about, owner_id="ada", topic=f"t{number}", payload={})
            late = {"dead_at": utcnow() + timedelta(seconds=number), "last_error": "refused"}
            session.connection().execute(sa.update(MESSAGE).where(MESSAGE.c.topic == f"t{number}").values(late))
    assert [one.topic for one in search.job_history(api.services, job_id).letters] == ["t0"]


def test_a_job_is_seen_cancelled_repeated_and_refunded(api: Api, operator: dict[str, str]) -> None:
    job_id = str(api.train(api.token("ada"), api.upload(api.token("ada"), 6)).json()["id"])
    here = f"/operators/jobs/{job_id}"
    page = api.call("GET", here, headers=operator).text
    assert "stage: stage preprocess" in page
    assert "job.accepted" in page
    assert api.call("POST", f"{here}/cancel", headers=operator).status_code == 303
    assert service.get(api.services, job_id).status == "cancelled"
    key = {"key": "7" * 32}
    again = [api.call("POST", f"{here}/retry", headers=operator, data=key).headers["location"] for _ in range(2)]
    assert again[0] == again[1] != f"{here}?notice=started"
    assert api.call("POST", f"{here}/refund", headers=operator, data={**key, "amount": "9"}).status_code == 409
    assert [action for _, action in actions(api)][:2] == ["job.accepted", "job.cancelled"]


def test_credits_are_granted_once_and_tokens_made_and_revoked(api: Api, operator: dict[str, str]) -> None:
    here = "/operators/owners/ada"
    for _ in range(2):
        api.call("POST", f"{here}/grant", headers=operator, data={"key": "8" * 32, "amount": "50"})
    assert accounts.balance(api.services, "ada").granted == 1050
    answer = api.call("POST", f"{here}/tokens", headers=operator, data={"name": "browser", "days": "30"})
    token = tokens.authenticate(api.services, re.findall(r"imp_[A-Za-z0-9_-]{43}", answer.text)[0])
    assert token is not None
    assert token.owner_id == "ada"
    assert (
        api.call("POST", f"/operators/tokens/{token.id}/revoke", headers=operator).headers["location"].startswith(here)
    )
    assert {"credits.granted", "token.created", "token.revoked"} <= {action for _, action in actions(api)}


def test_the_whole_audit_log_is_filtered_turned_over_and_exported(
    api: Api, operator: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def page(query: str = "") -> list[str]:
        text = api.call("GET", f"/operators/audit{query}", headers=operator).text
        return re.findall(r'class="key">([^<]+)<', text)

    job_id = str(api.train(api.token("ada"), api.upload(api.token("ada"), 6)).json()["id"])
    service.cancel(api.services, job_id)
    accounts.grant(api.services, "=cmd", 5, key="one")
    whole = [one.action for one in audit_log.list_entries(api.services, limit=500)]
    assert page() == whole
    assert page(f"?training={job_id}") == ["job.cancelled", "job.accepted"]
    assert page("?subject=rex") == ["job.cancelled", "job.accepted"]
    assert page("?subject=none") == []
    assert page("?owner=%3Dcmd&action=credits.granted&actor=&since=&until=") == ["credits.granted"]
    assert page("?actor=service")
    assert set(page("?actor=token")) == {one for who, one in actions(api) if who == "token"}
    now = utcnow()
    assert page(f"?since={now:%Y-%m-%d}&until={now:%Y-%m-%d}") == page(f"?until={now:%Y-%m-%d}") == whole
    assert page(f"?since={now + timedelta(days=1):%Y-%m-%d}") == page("?until=2020-01-01") == []
    refused = api.call("GET", "/operators/audit?since=yesterday", headers=operator)
    assert (refused.status_code, "must be a day" in refused.text) == (422, True)

    monkeypatch.setattr(audit, "_PAGE", 2)
    seen, query = [], ""
    while True:
        text = api.call("GET", f"/operators/audit{query}", headers=operator).text
        seen += re.findall(r'class="key">([^<]+)<', text)
        found = re.search(r'id="older" href="/operators/audit([^"]+)"', text)
        if found is None:
            break
        query = html.unescape(found[1])
    assert seen == whole
    monkeypatch.setattr(audit_log, "_CSV_PAGE", 2)
    rows = list(csv.DictReader(io.StringIO(api.call("GET", "/operators/audit.csv", headers=operator).text)))
    assert [one["action"] for one in rows] == whole
    assert {one["owner"] for one in rows} >= {"ada", "'=cmd"}, "a spreadsheet computes nothing"
    text = api.call("GET", "/operators/audit.csv?owner=%3Dcmd", headers=operator).text
    assert text.count("credits.granted") == 1
    assert "job." not in text


def test_queues_are_paused_and_workers_drained(api: Api, operator: dict[str, str]) -> None:
    workers.beat(api.services, "train@gpu1", ["train.sd15"], 4)
    form = {"scope": "family:sd15", "reason": "new drivers"}
    api.call("POST", "/operators/pauses", headers=operator, data=form)
    api.call("POST", "/operators/workers/drain", headers=operator, data={"worker": "train@gpu1", "on": "yes"})
    page = api.call("GET", "/operators", headers=operator).text
    assert "new drivers" in page
    assert "Take trainings again" in page
    assert workers.list_workers(api.services)[0].draining
    api.call("POST", "/operators/pauses/end", headers=operator, data=form)
    api.call("POST", "/operators/workers/drain", headers=operator, data={"worker": "train@gpu1", "on": "no"})
    assert pauses.list_pauses(api.services) == []
    assert not workers.list_workers(api.services)[0].draining
    wrong = api.call("POST", "/operators/pauses", headers=operator, data={"scope": "everything"})
    assert wrong.status_code == 422


def test_limits_of_an_owner_are_set_and_the_owner_is_renamed(api: Api, operator: dict[str, str]) -> None:
    here = "/operators/owners/ada"
    before = accounts.balance(api.services, "ada").available
    accounts.grant(api.services, "ada", 5)
    accounts.grant(api.services, "bob", 5)
    wrong = api.call("POST", f"{here}/limits", headers=operator, data={"pictures": "many", "waiting_jobs": "3"})
    assert wrong.status_code == 422
    assert limits.own_limits(api.services, "ada") == {}
    api.call("POST", f"{here}/limits", headers=operator, data={"pictures": " 50 ", "waiting_jobs": "3"})
    api.call("POST", f"{here}/limits", headers=operator, data={"pictures": "50", "waiting_jobs": ""})
    assert limits.own_limits(api.services, "ada") == {"pictures": 50}
    assert [action for _, action in actions(api)] == ["limit.changed"] * 3  # not for what stayed as it was
    assert 'name="pictures" value="50"' in api.call("GET", here, headers=operator).text

    assert api.call("POST", f"{here}/rename", headers=operator, data={"new": "bob"}).status_code == 409
    renamed = api.call("POST", f"{here}/rename", headers=operator, data={"new": "Ada Lovelace"})
    assert renamed.headers["location"] == "/operators/owners/Ada%20Lovelace?notice=renamed"
    assert api.call("GET", here, headers=operator).status_code == 404
    assert limits.own_limits(api.services, "Ada Lovelace") == {"pictures": 50}
    assert accounts.balance(api.services, "Ada Lovelace").available == before + 5
