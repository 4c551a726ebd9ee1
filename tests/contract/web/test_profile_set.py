"""A complete profile set starts a training once, or says why not: by HTTP, by the task's function, and raced."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from sqlmodel import select

from core.settings import Settings
from jobs import service
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import intake
from jobs.subjects import presets, subject_recipe, subject_settings
from notifications import outbox, webhooks
from notifications.tables import OutboxMessage
from notifications.webhook_payload import webhook_body
from storage.tables.pictures import StoredPicture, Subject
from tests.contract.processes import processes_at_once
from tests.contract.web.conftest import REX, Api
from web.pages.subject_form import TrainForm

READY = {"trainAutomatically": True, "baseModel": "sd15", "triggerWord": "sks", "webhookUrl": "https://app.example"}


@pytest.fixture
def ada(api: Api) -> str:
    return api.token("ada")


def store(api: Api, numbers: Sequence[int]) -> None:
    """Pictures of `rex`, not looked at: as good as any until a training looks at them."""
    for number in numbers:
        intake.store_picture(api.services, "ada", "rex", b"picture %d" % number)


def settle_on(api: Api, ada: str, **change: Any) -> None:
    assert api.call("PATCH", f"{REX}/lora/settings", ada, json={**READY, **change}).status_code == 200


def completed(api: Api, ada: str) -> dict[str, Any]:
    answer = api.call("POST", f"{REX}/profile-set/completed", ada)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def notices(api: Api) -> list[dict[str, Any]]:
    """The bodies of the notices that nothing was started, as they would be sent."""
    with api.services.database.reading() as session:
        rows = session.exec(select(OutboxMessage).where(OutboxMessage.topic == subject_settings.NOT_STARTED)).all()
        messages = [message for row in rows if (message := outbox.find(session, row.id))]
    bodies = [
        webhook_body(
            webhooks.notice_of(one).job, subject_settings.NOT_STARTED, sequence=one.sequence, at=one.created_at
        ).to_bytes()
        for one in messages
    ]
    return [json.loads(body) for body in bodies]


def test_twice_starts_one_and_more_pictures_are_another_set(api: Api, ada: str) -> None:
    settle_on(api, ada)
    store(api, range(5))
    first = completed(api, ada)
    assert (first["started"], first["reason"]) == (True, None)
    assert first["training"]["status"] == "pending"
    again = completed(api, ada)
    assert (again["started"], again["reason"]) == (False, "already_started")
    assert again["training"]["id"] == first["training"]["id"]

    store(api, [6])
    other = completed(api, ada)
    assert (other["reason"], other["training"]["id"]) == ("running", first["training"]["id"])
    service.cancel(api.services, first["training"]["id"])
    assert completed(api, ada)["started"]
    assert len(service.jobs(api.services, owner_id="ada")) == 2
    with api.services.database.reading() as session:
        assert session.get_one(Subject, ("ada", "rex")).profile_sets == 4
    assert [notice["data"]["failure_code"] for notice in notices(api)] == ["running"]


def test_the_caller_and_the_webhook_get_the_reason(api: Api, ada: str) -> None:
    assert completed(api, ada)["reason"] == "disabled"
    assert notices(api) == []  # nobody has said where to tell

    def reason(**change: Any) -> str:
        settle_on(api, ada, **change)
        content = completed(api, ada)
        assert (content["started"], content["training"]) == (False, None)
        assert content["message"]
        return str(content["reason"])

    assert reason(trainAutomatically=False) == "disabled"
    assert reason(baseModel=None) == "not_set_up"
    assert reason() == "too_few_images"
    store(api, range(5))
    balance = accounts.balance(api.services, "ada")
    api.train(ada, ids(api), maxSteps=99_999, resolution=64)  # holds some; what is left is not enough for the rest
    service.cancel(api.services, service.jobs(api.services, owner_id="ada")[0].job_id)
    assert accounts.balance(api.services, "ada") == balance
    poor = Services(api.services.settings.model_copy(update={"prices": {"sd15": 1_000_000}}))
    content = subject_settings.profile_set_completed(poor, "ada", "rex")
    poor.database.close()
    assert (content.started, content.reason) == (False, "insufficient_credits")
    assert "1000 are available" in str(content.message)
    assert accounts.balance(api.services, "ada") == balance

    told_outside = notices(api)
    codes = [notice["data"]["failure_code"] for notice in told_outside]
    assert codes == ["disabled", "not_set_up", "too_few_images", "insufficient_credits"]
    assert {notice["type"] for notice in told_outside} == {"training.not_started"}
    assert told_outside[2]["failure_reason"].startswith("0 good pictures")
    assert completed(api, ada)["started"]


def test_a_subject_without_a_trigger_word_gets_the_one_that_a_request_would_get(api: Api, ada: str) -> None:
    settle_on(api, ada, triggerWord=None)
    store(api, range(5))
    with api.services.database.reading() as session:
        word = subject_recipe.derive_trigger_word(session, "ada", "rex")
    training = completed(api, ada)["training"]
    assert training["spec"]["triggerWord"] == word
    assert subject_settings.get(api.services, "ada", "rex").trigger_word == word
    # The same set, now with a stored word, is not another one.
    service.cancel(api.services, training["id"])
    assert completed(api, ada)["reason"] == "already_started"


def test_samples_of_a_preset_get_the_word_and_saving_the_form_is_no_reason_to_train_again(api: Api, ada: str) -> None:
    preset = presets.recipe_for("character", "sd15", None, None)
    settle_on(api, ada, triggerWord=None)
    subject_settings.change(api.services, "ada", "rex", {"recipe": preset})
    store(api, range(5))
    training = completed(api, ada)["training"]
    spec = service.get(api.services, training["id"]).spec
    assert list(spec.validation.previews) == presets.prompts_for(
        "character", spec.trigger_word, spec.class_word or None
    )
    service.cancel(api.services, training["id"])
    kept = subject_settings.get(api.services, "ada", "rex")
    form = TrainForm.of_subject(kept).typed(trigger_word=spec.trigger_word)
    subject_settings.change(api.services, "ada", "rex", form.settings())
    assert subject_settings.get(api.services, "ada", "rex").recipe != preset
    assert completed(api, ada)["reason"] == "already_started"


def test_it_trains_with_the_whole_recipe_of_the_subject(api: Api, ada: str) -> None:
    recipe = {"rank": 16, "maxSteps": 7, "resolution": 64, "learningRate": 0.001, "objective": {"noiseOffset": 0.1}}
    settle_on(api, ada, classWord="dog", recipe=recipe)
    store(api, range(5))
    spec = completed(api, ada)["training"]["spec"]
    assert (spec["rank"], spec["maxSteps"], spec["resolution"], spec["learningRate"]) == (16, 7, 64, 0.001)
    assert (spec["objective"]["noiseOffset"], spec["classWord"], spec["triggerWord"]) == (0.1, "dog", "sks")
    # Another recipe is another training of the same pictures.
    service.cancel(api.services, service.jobs(api.services)[0].job_id)
    assert completed(api, ada)["reason"] == "already_started"
    settle_on(api, ada, recipe={"maxSteps": 8})
    assert completed(api, ada)["training"]["spec"]["maxSteps"] == 8


def test_a_recipe_that_does_not_fit_the_pictures_is_told(api: Api, ada: str) -> None:
    settle_on(api, ada, recipe={"validation": {"heldOut": 3}})
    store(api, range(5))
    content = completed(api, ada)
    assert (content["started"], content["reason"], content["training"]) == (False, "spec_invalid", None)
    assert "validation.held_out" in content["message"]
    assert [notice["data"]["failure_code"] for notice in notices(api)] == ["spec_invalid"]


def test_eight_at_once_start_one(api: Api, ada: str) -> None:
    settle_on(api, ada)
    store(api, range(6))
    settings: Settings = api.services.settings

    def complete() -> bool:
        services = Services(settings)  # of this process, in a transaction of its own
        try:
            return subject_settings.profile_set_completed(services, "ada", "rex").started
        finally:
            services.database.close()

    started = processes_at_once([complete] * 8)
    assert sorted(started) == [False] * 7 + [True], started
    assert len(service.jobs(api.services, owner_id="ada")) == 1


def ids(api: Api) -> list[str]:
    with api.services.database.reading() as session:
        return list(session.exec(select(StoredPicture.id).where(StoredPicture.owner_id == "ada")))
