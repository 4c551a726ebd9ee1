"""Forms of the page: what was entered is kept, a training is not paid twice, and refusals are for people."""

import re
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlmodel import col, select

from jobs import service
from jobs.admission import pauses, workers
from jobs.owners import accounts, sign_in_links
from jobs.subjects import subject_settings
from storage.tables.access import ApiToken
from storage.tables.jobs import Job, Status
from tests.contract.web.conftest import Api
from tests.contract.web.page import HERE, Visit
from web.pages.session import COOKIE

REX = "/subjects/rex"
FORM = {"trigger_word": "sks", "class_word": "", "base_model": "sd15", "credits_shown": 9999}


@pytest.fixture
def visit(lone_api: Api, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """An owner of each test with six good pictures of rex and 1,000 credits."""
    owner = request.node.name
    accounts.grant(lone_api.services, owner, 1000)
    lone_api.upload(lone_api.token(owner), 6)  # only the first ones are decoded
    yield Visit.of(lone_api, owner)
    for worker in workers.list_workers(lone_api.services):
        workers.leave(lone_api.services, worker.worker)
    for pause in pauses.list_pauses(lone_api.services):
        pauses.resume(lone_api.services, pause.scope)


def value_of(text: str, name: str) -> str:
    """The value of an input in a page."""
    found = re.search(rf'<input[^>]* name="{name}"[^>]*>', text)
    assert found is not None, text
    value = re.search(r' value="([^"]*)"', found[0])
    return value[1] if value else ""


def start(visit: Visit, key: str, **more: object) -> str:
    answer = visit.post(f"{REX}/train", key=key * 32, **{**FORM, **more})
    assert answer.status_code == 303, answer.text
    return answer.headers["location"].partition("?")[0].rpartition("/")[2]


# ---- the recipe --------------------------------------------------------------------------------------------------


def test_save_keeps_the_whole_recipe(visit: Visit) -> None:
    subject_settings.change(visit.api.services, visit.owner, "rex", {"base_model": "sd15", "recipe": {"rank": 32}})
    assert visit.post(f"{REX}/settings", **FORM, max_steps="120", resolution="128").status_code == 303
    kept = subject_settings.get(visit.api.services, visit.owner, "rex")
    assert kept.recipe == {"rank": 32, "max_steps": 120, "resolution": 128}
    text = visit.get(REX).text
    assert (value_of(text, "max_steps"), value_of(text, "resolution")) == ("120", "128")
    assert "<li>Rank = 32</li>" in text
    visit.post(f"{REX}/settings", **FORM, max_steps="", resolution="128")
    assert subject_settings.get(visit.api.services, visit.owner, "rex").recipe == {"rank": 32, "resolution": 128}
    assert value_of(visit.get(f"{REX}?like=plain").text, "resolution") == ""


def test_the_form_is_prefilled_from_the_last_training(visit: Visit) -> None:
    """Also from one that was started over the API."""
    images = visit.api.upload(visit.api.token(visit.owner), 6)
    more = {"maxSteps": 33, "resolution": 128, "adapter": {"dora": True}, "triggerWord": "fred"}
    job_id = visit.api.train(visit.api.token(visit.owner), images, **more).json()["id"]
    service.cancel(visit.api.services, job_id)
    for text in (visit.get(REX).text, visit.get(f"{REX}?like={job_id}").text):
        found = {name: value_of(text, name) for name in ("trigger_word", "max_steps", "resolution")}
        assert found == {"trigger_word": "fred", "max_steps": "33", "resolution": "128"}
        assert "<li>Separate magnitudes (DoRA) = yes</li>" in text
    again = start(visit, "a", like=job_id, max_steps="34", resolution="128")
    spec = service.get(visit.api.services, again).spec
    assert (spec.max_steps, spec.resolution, spec.adapter.dora) == (34, 128, True)
    assert visit.get(f"{REX}?like=job_of_somebody").status_code == 404


def test_enter_in_a_field_loses_nothing(visit: Visit) -> None:
    """Without a script, Enter presses the form's first button, which loads the page with all fields."""
    text = visit.get(REX).text
    form = text[text.index('id="train"') :]
    first = re.search(r"<button[^>]*>", form)
    assert first is not None
    assert 'formmethod="get"' in first[0]
    shown = visit.get(f"{REX}?trigger_word=sks+rex&class_word=dog&base_model=sdxl&max_steps=7&resolution=64").text
    names = ("trigger_word", "class_word", "max_steps", "resolution")
    assert {name: value_of(shown, name) for name in names} == {
        "trigger_word": "sks rex", "class_word": "dog", "max_steps": "7", "resolution": "64",
    }  # fmt: skip
    assert re.search(r'value="sdxl" checked', shown)


def test_a_second_training_is_asked_about(visit: Visit) -> None:
    job_id = start(visit, "a", max_steps="10", resolution="64")
    assert start(visit, "a", max_steps="10", resolution="64") == job_id, "the same form, sent twice"
    for key in ("b", "a"):  # another tab; or "Back" and another number of steps
        asked = visit.post(f"{REX}/train", key=key * 32, **FORM, max_steps="11", resolution="64")
        assert asked.status_code == 409
        assert "Start another training?" in asked.text
        assert f'href="/trainings/{job_id}"' in asked.text
    assert len(service.jobs(visit.api.services, owner_id=visit.owner)) == 1
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', asked.text))
    assert fields["max_steps"] == "11"
    answer = visit.post(f"{REX}/train", **fields)
    assert answer.status_code == 303
    assert len(service.jobs(visit.api.services, owner_id=visit.owner)) == 2
    visit.post(f"{REX}/train", **fields)
    assert len(service.jobs(visit.api.services, owner_id=visit.owner)) == 2, "the answer, sent twice"
    service.cancel(visit.api.services, job_id)
    asked = visit.post(f"/trainings/{job_id}/again", key="c" * 32)
    assert (asked.status_code, "Start another training?" in asked.text) == (409, True)
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', asked.text))
    assert visit.post(f"/trainings/{job_id}/again", **fields).status_code == 303


# ---- bases, devices, waiting ---------------------------------------------------------------------------------------


def test_bases_that_no_worker_has_are_marked(visit: Visit) -> None:
    services = visit.api.services
    assert "Not on any worker here" not in visit.get(REX).text, "no worker says anything"
    workers.beat(services, "train@one", ["train.sd15", "train.sdxl"], 1, "CPU", {"sd15": "here"})
    text = visit.get(REX).text
    options = {one.split('"')[0]: one for one in text.split('name="base_model" value="')[1:]}
    assert "Not on any worker here" in options["sdxl"]
    assert "Not on any worker here" not in options["sd15"]
    assert "credits</strong></span>" in options["sd15"], "without a time"
    shown, folded = text.split('<details class="far">')
    assert re.findall(r'name="base_model" value="([^"]+)"', shown) == ["sd15"], "what a worker has"
    number = len(options) - 1
    assert f"Other base models, on no worker now ({number})" in folded
    assert folded.count('name="base_model"') == number
    shown, _ = visit.get(f"{REX}?base_model=sdxl").text.split('<details class="far">')
    assert re.findall(r'name="base_model" value="([^"]+)"', shown) == ["sd15", "sdxl"], "and what is chosen"
    assert text.count("A base model shows a time once") == 1
    refused = visit.post(f"{REX}/train", key="a" * 32, **{**FORM, "base_model": "sdxl"})
    assert refused.status_code == 409
    assert "No worker of this service has" in refused.text
    workers.beat(services, "train@one", ["train.sd15", "train.sdxl"], 1, "CPU", {"sd15": "here", "sdxl": "download"})
    assert "The worker downloads it first" in visit.get(REX).text


def test_times_are_of_the_devices_that_train_now(visit: Visit) -> None:
    services = visit.api.services
    job_id = start(visit, "a", max_steps="10", resolution="64")
    measured = {"status": Status.READY, "seconds_per_step": 60.0, "device": "CPU", "lora_key": "x"}
    with services.database.writing() as session:
        session.connection().execute(sa.update(Job).where(col(Job.id) == job_id).values(**measured))
    assert "about 10 min" in visit.get(REX).text
    workers.beat(services, "train@one", ["train.sd15"], 1, "RTX 4090", {"sd15": "here"})
    text = visit.get(REX).text
    assert "about 10 min" not in text
    assert "time unknown here" in text
    workers.beat(services, "train@two", ["train.sd15"], 1, "CPU", {"sd15": "here"})
    assert "about 10 min" in visit.get(REX).text


def test_a_waiting_training_says_why(visit: Visit) -> None:
    job_id = start(visit, "a", max_steps="10", resolution="64")
    assert "No worker that trains sd15 is running" in visit.get(f"/trainings/{job_id}").text
    workers.beat(visit.api.services, "train@one", ["train.sd15"], 1, "CPU", {"sd15": "here"})
    assert "No worker that trains" not in visit.get(f"/trainings/{job_id}").text
    pauses.pause(visit.api.services, "family:sd15", "the card is repaired")
    assert "The operator has paused new trainings: the card is repaired." in visit.get(f"/trainings/{job_id}").text


# ---- failures ------------------------------------------------------------------------------------------------------


def test_a_failed_training_offers_what_can_succeed(visit: Visit) -> None:
    job_id = start(visit, "a", max_steps="100", resolution="64")
    for code, offer in (
        ("timeout", f"{REX}?like={job_id}&amp;max_steps=50#train"),
        ("loss_not_finite", f"{REX}?like=plain#train"),
        ("base_model_unavailable", f"{REX}?like={job_id}#train"),
        ("worker_lost", None),
    ):
        with visit.api.services.database.writing() as session:
            failed = {"status": Status.FAILED, "failure_code": code}
            session.connection().execute(sa.update(Job).where(col(Job.id) == job_id).values(**failed))
        text = visit.get(f"/trainings/{job_id}").text
        assert ("Train again</button>" in text) == (offer is None), code
        assert offer is None or f'href="{offer}"' in text


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_mistyped_addresses_answer_with_a_page(visit: Visit) -> None:
    for path in ("/trainigs", "/subjects/", "/trainings/JOB!", "/subjects/a/b/c", "/%FF", "/operators/x"):
        answer = visit.get(path)
        assert answer.headers.get("content-type", "text/html").startswith("text/html"), path
        assert answer.status_code in (303, 307, 400, 404), (path, answer.status_code)
    assert "There is nothing at this address" in visit.get("/trainigs").text
    for path in ("/api/nothing", "/trainigs"):
        answer = visit.api.call("GET", path)
        assert answer.headers["content-type"] == "application/problem+json"
    assert visit.api.call("GET", "/api/nothing", headers={"accept": "text/html"}).status_code == 404


def test_odd_subject_names(visit: Visit) -> None:
    for name, status in ((".", 422), ("..", 422), ("   ", 303), ("a/b", 303), ("ä ö?#%", 303), ("x" * 300, 422)):
        answer = visit.get(
            f"/subjects?name={re.sub('[^a-z]', lambda one: ''.join(f'%{b:02X}' for b in one[0].encode()), name)}"
        )
        assert answer.status_code == status, name
        assert status != 422 or "<strong>Subject</strong>" in answer.text
        if status == 303:
            assert visit.get(answer.headers["location"]).status_code == 200


def test_faults_have_the_labels_of_the_form(visit: Visit) -> None:
    answer = visit.post(f"{REX}/train", key="a" * 32, **FORM, max_steps="many", resolution="64")
    assert answer.status_code == 422
    assert "<strong>Steps</strong>: must be a whole number" in answer.text
    assert "bad-edge" in answer.text
    assert 'class="note bad"' in answer.text
    text = visit.get(f"{REX}?resolution=65&max_steps=0").text
    assert "<strong>Resolution</strong> must be a multiple of 64" in text
    assert "<strong>Steps</strong> must be at least 1" in text
    for shown in (answer.text, text):
        assert "maxSteps" not in shown
        assert "Input should" not in shown


# ---- the link ------------------------------------------------------------------------------------------------------


def test_a_sign_in_link_works_once(visit: Visit) -> None:
    api = visit.api
    old, secret = (sign_in_links.create(api.services, "zoe") for _ in range(2))
    accounts.grant(api.services, "zoe", 5)
    api.client.cookies.clear()
    assert api.call("GET", f"/sign-in/{old}").status_code == 404, "only the newest link works"
    for _ in range(2):  # looking at it does not use it up
        assert "Sign in as zoe" in api.call("GET", f"/sign-in/{secret}").text
    assert api.call("POST", f"/sign-in/{secret}", headers={"origin": "https://evil.example"}).status_code == 403
    answer = api.call("POST", f"/sign-in/{secret}", headers=HERE)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.cookies[COOKIE]
    api.client.cookies.clear()
    assert api.call("GET", "/account", headers={"cookie": f"{COOKIE}={cookie}"}).status_code == 200
    again = api.call("POST", f"/sign-in/{secret}", headers=HERE)
    assert (again.status_code, COOKIE in again.cookies) == (404, False)
    late = sign_in_links.create(api.services, "zoe")
    with api.services.database.writing() as session:
        row = session.exec(select(ApiToken).where(col(ApiToken.link_sha256).is_not(None))).one()
        row.link_expires_at = row.created_at
    assert api.call("POST", f"/sign-in/{late}", headers=HERE).status_code == 404
