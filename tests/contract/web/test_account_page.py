"""The account on the page: signed changes with the balance after each, a CSV file, notices, and tokens of its own."""

import csv
import io
import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlmodel import col

from core.errors import IllegalMove, NotFound
from core.settings import Settings
from jobs import service
from jobs.notices import notices
from jobs.owners import accounts, tokens
from storage.tables.jobs import Job, Stage, Status
from tests.contract.web.conftest import Api, make_api
from tests.contract.web.test_results import cookie_of


def test_each_entry_says_what_it_changed_and_what_was_left(api: Api) -> None:
    job_id = str(api.train(api.token("ada"), api.upload(api.token("ada"), 6), maxSteps=2000).json()["id"])
    held = accounts.balance(api.services, "ada").held
    with api.services.database.writing() as session:
        begun = {"status": Status.TRAINING, "stage": Stage.TRAIN, "step": 1000}
        session.connection().execute(sa.update(Job).where(col(Job.id) == job_id).values(**begun))
    service.cancel(api.services, job_id)
    charged = service.get(api.services, job_id).credits.charged
    assert 0 < charged < held
    accounts.refund(api.services, job_id, 1, key="sorry")
    found = [(one.kind, one.change, one.available) for one in accounts.statement(api.services, "ada")]
    assert found == [
        ("refund", 1, 1001 - charged),
        ("settle", held - charged, 1000 - charged),
        ("hold", -held, 1000 - held),
        ("grant", 1000, 1000),
    ]
    balance = accounts.balance(api.services, "ada")
    assert found[0][2] == balance.available
    older = accounts.statement(api.services, "ada", before_seq=3)
    assert [(one.kind, one.available) for one in older] == [("hold", 1000 - held), ("grant", 1000)]
    text = api.call("GET", "/account", headers=cookie_of(api)).text
    assert f"−{held}</td>" in text  # noqa: RUF001 - a minus sign
    assert "+1\u202f000</td>" in text
    assert 'href="/subjects/rex">rex</a>' in text


def test_the_whole_account_as_csv(api: Api) -> None:
    subject = "=1+1"
    images = api.upload(api.token("ada"), 6, subject=subject)
    request = {"owner_id": "ada", "subject_id": subject, "base_model": "sd15", "trigger_word": "sks", "images": images}
    job_id = service.submit(api.services, {**request, "max_steps": 10}).job_id
    answer = api.call("GET", "/account/entries.csv", headers=cookie_of(api))
    assert answer.headers["content-disposition"] == 'attachment; filename="imprint-account.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["kind"], row["training"], row["subject"]) for row in rows] == [
        ("hold", job_id, "'=1+1"), ("grant", "", ""),
    ]  # fmt: skip


def test_notices_are_switched_by_a_form(api: Api) -> None:
    signed_in = cookie_of(api)
    form = {"email": "ada@example.org", "event": ["training.failed", "credits.low"], "low_credits": "50"}
    answer = api.call("POST", "/account/notices", headers=signed_in, data=form)
    assert answer.headers["location"] == "/account?notice=notices"
    found = notices.get(api.services, "ada")
    assert (found.email, set(found.events), found.low_credits) == (
        "ada@example.org", {"training.failed", "credits.low"}, 50,
    )  # fmt: skip
    text = api.call("GET", "/account", headers=signed_in).text
    assert re.findall(r'name="event" value="([^"]+)" checked', text) == ["training.failed", "credits.low"]
    assert "sends no e-mail" in text
    wrong = api.call("POST", "/account/notices", headers=signed_in, data={"email": "x", "low_credits": "many"})
    assert wrong.status_code == 422


def test_an_owner_creates_and_revokes_tokens(api: Api) -> None:
    signed_in = cookie_of(api)
    answer = api.call("POST", "/account/tokens", headers=signed_in, data={"name": "shop", "days": "30"})
    assert answer.headers["cache-control"] == "no-store"
    secret = re.findall(r"imp_[A-Za-z0-9_-]{43}", answer.text)[0]
    made = tokens.authenticate(api.services, secret)
    assert made is not None
    assert (made.owner_id, made.scopes, made.name) == ("ada", ("read", "train"), "shop")
    page = api.call("GET", "/account", headers=signed_in).text
    assert secret not in page
    assert f"/account/tokens/{made.id}/revoke" in page
    with pytest.raises(NotFound):
        tokens.revoke(api.services, made.id, "bob")
    assert api.call("POST", f"/account/tokens/{made.id}/revoke", headers=signed_in).status_code == 303
    assert tokens.authenticate(api.services, secret) is None


def test_a_token_gives_no_more_than_it_has_and_there_is_an_end(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    creator = tokens.authenticate(api.services, api.token(None, "read", "operate"))
    assert creator is not None
    _, made = tokens.create_own(api.services, creator, "ada", "reader")
    assert (made.owner_id, made.scopes) == ("ada", ("read",))
    monkeypatch.setattr(tokens, "MAX_OWN", 2)
    tokens.create_own(api.services, creator, "ada", "second")
    with pytest.raises(IllegalMove, match="revoke one first"):
        tokens.create_own(api.services, creator, "ada", "third")


def test_the_address_for_buying_credits_is_a_setting(tmp_path: Path) -> None:
    for address, link in ((None, 0), ("https://shop.example/buy?for={owner}", 1)):
        settings = Settings(_env_file=None, home=tmp_path / "home", web_top_up_url=address)
        for api in make_api(settings):
            text = api.call("GET", "/account", headers=cookie_of(api)).text
            assert text.count('href="https://shop.example/buy?for=ada"') == link
