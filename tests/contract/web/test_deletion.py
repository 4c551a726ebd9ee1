"""Deletions over HTTP and on the page: accepted once, looked up, undone, and confirmed where much is lost."""

import re
from collections.abc import Iterator

import pytest

from core.settings import Settings
from jobs.deletion import requests
from jobs.deletion import run as deletions
from tests.contract.web.conftest import REX, Api, make_api, problem
from tests.contract.web.page import Visit
from tests.contract.web.test_page_matrix import HERE
from web.pages.session import COOKIE


def done(api: Api, deletion_id: str) -> None:
    """A worker does the deletion."""
    assert deletions.run(api.services, deletion_id, lambda _: None)


def test_a_subject_is_deleted_once_and_then_it_is_not_there(api: Api) -> None:
    ada, bob = api.token("ada"), api.token("bob")
    api.upload(ada, 2)
    problem(api.call("DELETE", REX, bob), 404, "not_found")
    first = api.call("DELETE", REX, ada)
    assert first.status_code == 202
    told = first.json()
    assert (told["kind"], told["status"], told["subjectId"]) == ("subject", "running", "rex")
    assert first.headers["location"] == f"/api/deletions/{told['id']}"
    assert api.call("DELETE", REX, ada).json()["id"] == told["id"]  # sent again, after a timeout for example
    files = [("files", ("a.png", b"\x89PNG\r\n\x1a\n"))]
    assert api.call("POST", f"{REX}/images", ada, files=files).status_code in (409, 422)
    problem(api.call("PATCH", f"{REX}/lora/settings", ada, json={"classWord": "dog"}), 409, "illegal_move")
    assert api.call("GET", "/api/deletions", ada).json()["deletions"] == [told]
    done(api, told["id"])
    shown = api.call("GET", first.headers["location"], ada).json()
    assert (shown["status"], shown["subjectId"]) == ("done", None)
    assert api.call("GET", "/api/deletions", ada).json() == {"deletions": []}
    problem(api.call("GET", first.headers["location"], bob), 404, "not_found")
    problem(api.call("DELETE", REX, ada), 404, "not_found")
    assert api.call("PATCH", f"{REX}/lora/settings", ada, json={"classWord": "dog"}).status_code == 200


def test_a_removed_picture_is_deleted_and_may_be_removed_again(api: Api) -> None:
    ada = api.token("ada")
    [image] = api.upload(ada, 1)
    path = f"{REX}/images/{image}"
    assert api.call("DELETE", path, ada).status_code == 204
    [listed] = api.call("GET", "/api/deletions", ada).json()["deletions"]
    assert (listed["kind"], listed["imageId"]) == ("picture", image)
    done(api, listed["id"])
    assert list(api.services.store.list("")) == []
    assert api.call("DELETE", path, ada).status_code == 204
    problem(api.call("DELETE", path, api.token("bob")), 404, "not_found")


def test_an_account_is_deleted_with_its_name_only_and_its_tokens_end(api: Api) -> None:
    ada, shop = api.token("ada"), api.token(None)
    api.upload(ada, 1)
    for confirm in ({}, {"confirm": ""}, {"confirm": "bob"}):
        fault = problem(api.call("DELETE", "/api/account", ada, params=confirm), 422, "spec_invalid")
        assert list(fault["faults"]) == ["confirm"]
    told = api.call("DELETE", "/api/account", ada, params={"confirm": "ada"}).json()
    assert told["kind"] == "owner"
    problem(api.call("GET", "/api/account", ada), 401, "unauthorized")
    # The application asks with its service token, also when the name is forgotten.
    headers = {"Imprint-Owner": "ada"}
    assert api.call("GET", f"/api/deletions/{told['id']}", shop, headers=headers).json()["status"] == "running"
    done(api, told["id"])
    assert api.call("GET", f"/api/deletions/{told['id']}", shop, headers=headers).json()["status"] == "done"
    assert api.call("GET", "/api/account", shop, headers=headers).json()["granted"] == 0


@pytest.fixture
def patient(settings: Settings) -> Iterator[Api]:
    yield from make_api(settings.model_copy(update={"deletion_grace_s": 3600.0}))


def test_what_is_deleted_on_the_page_can_be_undone_by_default(api: Api) -> None:
    ada = api.token("ada")
    images = api.upload(ada, 6)
    job_id = api.train(ada, images).json()["id"]
    page = Visit.of(api, "ada", "read", "train")
    for address, back in ((f"/trainings/{job_id}", f"/trainings/{job_id}"), ("/subjects/rex", "/subjects/rex")):
        assert page.post(f"{address}/delete").headers["location"] == f"{back}?notice=deleting"
        [waiting] = requests.list_open(api.services, "ada")
        marked = re.sub(r"<[^>]+>", "", page.get("/").text)
        assert ("deleted at" in marked, "Undo the deletion of rex" in marked) == (("subjects" in address),) * 2
        assert (waiting.status, 500 < (waiting.due_at - waiting.created_at).total_seconds() < 700) == ("waiting", True)
        assert page.post(f"/deletions/{waiting.id}/undo").headers["location"] == f"{back}?notice=undone"
    assert page.post("/account/delete", confirm="ada").headers["location"] == "/account?notice=deleting"
    [waiting] = requests.list_open(api.services, "ada")
    assert page.post(f"/deletions/{waiting.id}/undo").headers["location"] == "/account?notice=undone"
    assert api.call("DELETE", REX, ada).json()["status"] == "running"  # applications are not asked to wait


def test_a_deletion_that_waits_is_undone_by_call_and_by_form(patient: Api) -> None:
    ada = patient.token("ada")
    images = patient.upload(ada, 2)
    told = patient.call("DELETE", REX, ada).json()
    assert told["status"] == "waiting"
    assert told["dueAt"] > told["createdAt"]
    assert len(patient.upload(ada, 3)) == 3  # until it begins, all goes on
    assert patient.call("DELETE", f"/api/deletions/{told['id']}", ada).status_code == 204
    problem(patient.call("DELETE", f"/api/deletions/{told['id']}", ada), 404, "not_found")
    # On the page.
    signed_in = patient.call("POST", "/sign-in", headers=HERE, data={"token": ada, "owner": "", "next": "/"})
    headers = {**HERE, "cookie": f"{COOKIE}={signed_in.cookies[COOKIE]}"}
    patient.client.cookies.clear()
    assert patient.call("POST", "/subjects/rex/delete", headers=headers).status_code == 303
    [waiting] = patient.call("GET", "/api/deletions", ada).json()["deletions"]
    shown = patient.call("GET", "/account", headers=headers).text
    assert f"/deletions/{waiting['id']}/undo" in shown
    assert "Delete everything" in shown
    assert "Undo the deletion" in patient.call("GET", "/subjects/rex", headers=headers).text
    undone = patient.call("POST", f"/deletions/{waiting['id']}/undo", headers=headers)
    assert (undone.status_code, undone.headers["location"]) == (303, "/subjects/rex?notice=undone")
    assert patient.call("GET", "/api/deletions", ada).json() == {"deletions": []}
    assert patient.call("GET", f"{REX}/images/{images[0]}/preview", ada).status_code == 200
    # The page offers to undo right where a picture was removed.
    removed = patient.call("POST", f"/subjects/rex/images/{images[0]}/remove", headers=headers).headers["location"]
    [undo] = re.findall(r'action="(/deletions/[a-z0-9_]+/undo)"', patient.call("GET", removed, headers=headers).text)
    assert patient.call("POST", undo, headers=headers).headers["location"] == "/subjects/rex?notice=undone"
    assert patient.call("GET", f"{REX}/images/{images[0]}/preview", ada).status_code == 200
    wrong = patient.call("POST", "/account/delete", headers=headers, data={"confirm": "bob"})
    assert wrong.status_code == 422
    right = patient.call("POST", "/account/delete", headers=headers, data={"confirm": "ada"})
    assert right.status_code == 303
