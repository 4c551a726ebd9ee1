"""A training waits with its captions for its owner: over HTTP and on the page."""

import pytest

from jobs.captioning import stage
from jobs.stages import preprocessing, stage_runner, steps
from tests.contract.web.conftest import REX, Api, problem
from tests.contract.web.test_page_matrix import HERE


def waiting(api: Api, secret: str, **more: object) -> str:
    """The id of a training that waits for its review."""
    images = api.upload(secret, 5)
    accepted = api.train(secret, images, review=True, **more)
    assert accepted.status_code == 202, accepted.text
    job_id: str = accepted.json()["id"]
    for position in range(5):
        preprocessing.preprocess(api.services, job_id, position)
    with pytest.raises(stage_runner.NothingToDo, match="review"):
        stage.caption(api.services, job_id)
    return job_id


def test_captions_are_changed_and_accepted_over_http(api: Api) -> None:
    ada = api.token("ada")
    job_id = waiting(api, ada)
    one = f"/api/trainings/{job_id}"
    view = api.call("GET", one, ada).json()
    assert (view["stage"], view["review"]) == ("review", True)
    found = api.call("GET", f"{one}/review", ada).json()
    assert (found["until"], [image["position"] for image in found["captions"]]) == (view["reviewUntil"], [*range(5)])
    change = {"captions": {found["captions"][0]["pictureId"]: "on a wall"}}
    assert api.call("POST", f"{REX}/captions", ada, json=change).status_code == 200
    assert api.call("GET", f"{one}/review", ada).json()["captions"][0]["caption"] == "on a wall"
    problem(api.call("POST", f"{one}/review", ada, json={"captions": {"7": "x"}}), 422, "spec_invalid")
    problem(api.call("POST", f"{one}/review", api.token("bob"), json={}), 404, "not_found")
    accepted = api.call("POST", f"{one}/review", ada, json={"captions": {"1": "by hand"}})
    assert (accepted.json()["stage"], accepted.json()["reviewUntil"]) == ("dataset", None)
    steps.dataset(api.services, job_id)
    problem(api.call("GET", f"{one}/review", ada), 409, "illegal_move")


def test_the_page_links_to_the_captions_and_has_a_button(api: Api) -> None:
    ada = api.token("ada")
    job_id = waiting(api, ada)
    signed_in = api.call("POST", "/sign-in", headers=HERE, data={"token": ada, "owner": "", "next": "/"})
    assert signed_in.status_code == 303
    page = api.call("GET", f"/trainings/{job_id}").text
    assert 'id="review-captions" href="/subjects/rex/captions"' in page
    assert 'id="accept-captions"' in page
    assert api.call("POST", f"/trainings/{job_id}/review", headers=HERE).status_code == 303
    assert 'id="review-captions"' not in api.call("GET", f"/trainings/{job_id}").text


def test_the_form_offers_to_write_captions_only_where_there_is_a_captioner(api: Api) -> None:
    ada = api.token("ada")
    api.upload(ada, 5)
    api.call("POST", "/sign-in", headers=HERE, data={"token": ada, "owner": "", "next": "/"})
    page = api.call("GET", "/subjects/rex").text
    assert '<option value="template"' in page
    assert '<option value="auto"' not in page
    form = {"key": "5" * 32, "credits_shown": "99", "trigger_word": "sks", "base_model": "sd15", "max_steps": "10"}
    form |= {"captions": "template", "review": "yes"}
    started = api.call("POST", "/subjects/rex/train", headers=HERE, data=form)
    assert started.status_code == 303, started.text
    view = api.call("GET", f"/api{started.headers['location'].partition('?')[0]}", ada).json()
    assert (view["spec"]["captions"], view["review"]) == ("template", True)
