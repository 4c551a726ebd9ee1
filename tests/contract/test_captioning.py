"""Captions that Imprint has written: the stage, the application's captioner, the review, on both databases."""

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import col, select

from core.clock import utcnow
from core.errors import CaptionsUnavailable, IllegalMove, SpecInvalid, Unreachable
from jobs import service
from jobs.admission import workers
from jobs.captioning import asking, review, stage
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import stage_runner, steps
from jobs.subjects import captions as subject_captions
from jobs.subjects import subject_pictures
from notifications.application import PictureQuestion
from notifications.tables import OutboxMessage
from storage.tables.captions import GeneratedCaption
from storage.tables.jobs import Job, JobPicture, PictureState
from storage.tables.pictures import StoredPicture
from tasks import pipeline
from tests.contract.jobs import balances, events, messages, request
from tests.contract.jobs import row as job_row
from training.data.dataset import Manifest

HASHES = [f"{number:x}" * 64 for number in range(1, 7)]


@pytest.fixture
def asked(services: Services) -> Iterator[Services]:
    """Services with an application's captioner, a Celery task."""
    made = Services(services.settings.model_copy(update={"caption_task": "shop.caption", "caption_queue": "shop"}))
    yield made
    made.database.close()


def submit(services: Services, **changed: Any) -> str:
    """A job whose five pictures are prepared."""
    given = {"captions": "auto", "class_word": "dog", "idempotency_key": None, **changed}
    job_id = service.submit(services, request(services, **given)).job_id
    with services.database.writing() as session:
        for number, picture in enumerate(session.exec(select(JobPicture).where(JobPicture.job_id == job_id)).all()):
            picture.state, picture.prepared_sha256 = PictureState.GOOD, HASHES[number]
            picture.width = picture.height = 512
            session.add(picture)
    return job_id


def run(services: Services, step: Any, job_id: str) -> bool:
    """Run a stage; whether the chain goes on."""
    try:
        step(services, job_id)
    except stage_runner.NothingToDo:
        return False
    return True


def answered(services: Services, texts: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Send what the outbox asks for to an application, which answers; returns what it was asked."""
    with services.database.writing() as session:
        found = session.exec(select(OutboxMessage).where(OutboxMessage.topic == asking.TOPIC)).all()
        for message in found:
            session.delete(message)
        payloads = [message.payload for message in found]
    given: list[dict[str, Any]] = []

    def send(name: str, queue: str | None, picture: PictureQuestion, back: Any) -> None:
        assert (name, queue) == ("shop.caption", "shop")
        given.append(dict(picture))
        if texts is None or picture.sha256 in texts:
            said = {"caption": f"a dog, {picture.sha256[0]}"} if texts is None else texts[picture.sha256]
            asking.answer(services, said, *back)

    for payload in sorted(payloads, key=lambda one: str(one["sha256"])):
        asking.ask(services, payload["job_id"], payload["sha256"], send)
    return given


def captions(services: Services, job_id: str) -> list[str | None]:
    with services.database.reading() as session:
        order = col(JobPicture.position)
        return list(session.exec(select(JobPicture.caption).where(JobPicture.job_id == job_id).order_by(order)))


def trained_with(services: Services, job_id: str) -> list[str]:
    """The captions of the dataset, in order."""
    sha256 = job_row(services, job_id).dataset_sha256
    return [one.caption for one in Manifest.from_json(services.store.get(f"datasets/{sha256}.json")).examples]


def test_a_job_asks_the_application_waits_for_free_and_trains_with_its_captions(asked: Services) -> None:
    job_id = submit(asked)
    with asked.database.writing() as session:
        [first, *_] = session.exec(select(JobPicture).where(JobPicture.job_id == job_id).order_by(JobPicture.position))
        first.caption = "my own caption"
        session.add(first)
    held = balances(asked)["held"]
    assert not run(asked, steps.dataset, job_id), "not before its captions"
    assert not run(asked, stage.caption, job_id)
    job = job_row(asked, job_id)
    assert (job.lease_until, job.attempt, job.stage) == (None, 0, "preprocess")
    assert job.waiting_note == "4 picture(s) wait for their captions"
    given = answered(asked)
    assert [one["sha256"] for one in given] == HASHES[1:5], "a given caption stays"
    one = given[0]
    assert (one["owner_id"], one["subject_id"], one["job_id"]) == ("ada", "dog", job_id)
    assert (one["trigger_word"], one["class_word"], one["learns"]) == ("sks", "dog", "object")
    assert '"sks dog"' in one["instruction"]
    assert one["url"].endswith(f"/prepared/{HASHES[1][:2]}/{HASHES[1]}.png")
    assert run(asked, stage.caption, job_id)
    assert captions(asked, job_id) == ["my own caption", "a dog, 2", "a dog, 3", "a dog, 4", "a dog, 5"]
    assert run(asked, steps.dataset, job_id)
    assert trained_with(asked, job_id) == [
        "sks, my own caption", "sks, a dog, 2", "sks, a dog, 3", "sks, a dog, 4", "sks, a dog, 5",
    ]  # fmt: skip
    assert balances(asked)["held"] == held
    assert [one["stage"] for one in events(asked, job_id, "stage")] == ["preprocess", "caption", "dataset", "train"]


def test_a_picture_is_captioned_once_for_each_prompt(asked: Services) -> None:
    first = submit(asked)
    run(asked, stage.caption, first)
    assert len(answered(asked)) == 5
    again = submit(asked, seed=2)
    assert run(asked, stage.caption, again)
    assert answered(asked) == []
    assert captions(asked, again)[0] == "a dog, 1"
    other = submit(asked, learns="style")
    assert not run(asked, stage.caption, other)
    assert len(answered(asked)) == 5


def test_an_answer_that_is_none_is_asked_for_again_and_at_last_the_job_fails_for_free(asked: Services) -> None:
    job_id = submit(asked)
    run(asked, stage.caption, job_id)
    answered(asked, {})  # the application's worker is down
    for wrong in ({"text": "a dog"}, None, {"caption": 7}, "x" * 1001):
        with pytest.raises(Unreachable):
            asking.answer(asked, wrong, job_id, HASHES[0])
    assert not run(asked, stage.caption, job_id)
    assert answered(asked, {}) == [], "not twice in a minute"
    with asked.database.writing() as session:
        long_ago = utcnow() - timedelta(seconds=asked.settings.caption_patience_s + 1)
        session.connection().execute(sa.update(GeneratedCaption).values(asked_at=long_ago, created_at=long_ago))
        session.connection().execute(sa.update(Job).values(created_at=long_ago))
    with pytest.raises(CaptionsUnavailable):
        stage.caption(asked, job_id)
    view = service.get(asked, job_id)
    assert (view.status, view.failure and view.failure.code) == ("failed", "captions_unavailable")
    assert balances(asked)["held"] == 0
    assert run(asked, stage.caption, submit(asked, seed=2)) is False, "a retry asks again"
    assert len(answered(asked)) == 5


def test_what_a_cancelled_job_waited_for_costs_the_next_job_none_of_its_patience(asked: Services) -> None:
    first = submit(asked)
    run(asked, stage.caption, first)
    answered(asked, {})
    service.cancel(asked, first)
    with asked.database.writing() as session:
        long_ago = utcnow() - timedelta(seconds=asked.settings.caption_patience_s + 1)
        session.connection().execute(sa.update(GeneratedCaption).values(asked_at=long_ago, created_at=long_ago))
    again = submit(asked, seed=2)
    for _ in range(2):
        assert not run(asked, stage.caption, again)
    assert len(answered(asked)) == 5, "once"
    assert run(asked, stage.caption, again)


def test_the_last_answer_launches_the_job(asked: Services) -> None:
    job_id = submit(asked)
    run(asked, stage.caption, job_id)
    answered(asked, dict.fromkeys(HASHES[:4], "a dog"))
    assert not is_due(asked, job_id)
    asking.answer(asked, "a dog", job_id, HASHES[4])
    assert is_due(asked, job_id)


def is_due(services: Services, job_id: str) -> bool:
    launches = select(OutboxMessage).where(
        OutboxMessage.job_id == job_id, OutboxMessage.kind == "launch", OutboxMessage.due_at < utcnow()
    )
    with services.database.reading() as session:
        return any(one.dead_at is None and one.sent_at is None for one in session.exec(launches))


def test_a_job_waits_for_the_review_and_trains_with_what_was_accepted(asked: Services) -> None:
    job_id = submit(asked, review=True)
    run(asked, stage.caption, job_id)
    answered(asked)
    assert not run(asked, stage.caption, job_id)
    job = job_row(asked, job_id)
    assert (job.stage, job.lease_until) == ("review", None)
    assert "training.review" in messages(asked, job_id)
    assert pipelined(asked, job_id) is None
    assert not run(asked, steps.dataset, job_id)
    assert sweeps.repair_jobs(asked) == 0, "it waits for a person"
    found = review.get(asked, job_id, "ada")
    assert [one.caption for one in found.captions] == [f"a dog, {number}" for number in range(1, 6)]
    assert service.get(asked, job_id).review_until == found.until
    # The captions are edited where captions are edited, and changes can be taken back.
    subject_captions.replace(asked, "ada", "dog", "a dog", "a small dog")
    subject_captions.undo(asked, "ada", "dog")
    subject_captions.prepend(asked, "ada", "dog", "in a park, ", [found.captions[0].picture_id or ""])
    subject_pictures.remove(asked, "ada", "dog", found.captions[1].picture_id or "")
    held = balances(asked)["held"]
    review.accept(asked, job_id, "ada", {4: "  by hand "})
    review.accept(asked, job_id, "ada")  # again: nothing
    job = job_row(asked, job_id)
    assert job.stage == "dataset"
    assert balances(asked)["held"] == held
    assert run(asked, steps.dataset, job_id)
    assert trained_with(asked, job_id) == [
        "sks, in a park, a dog, 1", "sks, a dog, 2", "sks, a dog, 3", "sks, a dog, 4", "sks, by hand",
    ]  # fmt: skip
    with pytest.raises(IllegalMove):
        review.get(asked, job_id, "ada")


def pipelined(services: Services, job_id: str) -> Any:
    return stage_runner.remaining_work(services, job_id)


def test_given_captions_may_be_reviewed_too_and_undo_brings_back_those_of_before(services: Services) -> None:
    job_id = submit(services, captions="given", review=True)
    assert not run(services, stage.caption, job_id)
    assert [one.caption for one in review.get(services, job_id).captions] == [None] * 5
    with pytest.raises(SpecInvalid, match=r"captions\.9"):
        review.accept(services, job_id, None, {9: "none"})
    with pytest.raises(SpecInvalid, match="1001 characters"):
        review.accept(services, job_id, None, {0: "x" * 1001})
    review.accept(services, job_id)
    assert run(services, steps.dataset, job_id)
    assert trained_with(services, job_id) == ["a photo of sks dog"] * 5


def test_captions_for_a_review_can_be_taken_back(asked: Services) -> None:
    job_id = submit(asked, review=True)
    run(asked, stage.caption, job_id)
    answered(asked)
    run(asked, stage.caption, job_id)
    done = subject_captions.undo(asked, "ada", "dog")
    assert {one.caption for one in done.changed} == {None}
    with asked.database.reading() as session:
        assert set(session.exec(select(StoredPicture.caption))) == {None}


def test_a_review_that_nobody_makes_ends_the_job_at_no_cost(asked: Services) -> None:
    job_id = submit(asked, captions="given", review=True)
    run(asked, stage.caption, job_id)
    with asked.database.writing() as session:
        session.connection().execute(sa.update(Job).values(next_look_at=utcnow() - timedelta(seconds=1)))
    sweeps.repair_jobs(asked)
    view = service.get(asked, job_id)
    assert (view.status, view.failure and view.failure.code) == ("failed", "review_expired")
    assert balances(asked)["held"] == 0
    with pytest.raises(IllegalMove):
        review.accept(asked, job_id)


def test_a_job_in_review_takes_no_place_and_waits_for_its_turn_afterwards(services: Services) -> None:
    small = Services(services.settings.model_copy(update={"admission_floor": 1, "limit_running_jobs": 1}))
    first = submit(small, captions="given", review=True)
    second = submit(small, captions="given", seed=2)
    assert job_row(small, second).admitted_at is None
    run(small, stage.caption, first)
    assert job_row(small, second).admitted_at is not None
    assert run(small, steps.dataset, second)
    review.accept(small, first)
    assert job_row(small, first).admitted_at is None, "it waits for its turn"
    service.cancel(small, second)
    assert job_row(small, first).admitted_at is not None
    assert run(small, steps.dataset, first)
    small.database.close()


def test_without_a_captioner_the_request_is_refused(services: Services) -> None:
    given = request(services, captions="auto")
    with pytest.raises(SpecInvalid, match="this installation has no captioner"):
        service.submit(services, given)
    weights = Services(services.settings.model_copy(update={"captioner": "/models/florence"}))
    with pytest.raises(SpecInvalid, match="goes to a remote server"):
        service.submit(
            Services(weights.settings.model_copy(update={"ai_toolkit_url": "http://toolkit"})),
            given | {"backend": "ai-toolkit"},
        )
    workers.beat(weights, "train@one", ["train.sd15"], 1)
    with pytest.raises(SpecInvalid, match="no training worker of sd15 has the weights"):
        service.submit(weights, given)
    assert accounts.balance(services, "ada").held == 0
    workers.beat(weights, "train@two", ["train.sd15"], 1, captions=True)
    job_id = service.submit(weights, given).job_id
    assert pipelined(weights, job_id).caption_here
    weights.database.close()


def test_captions_go_with_the_last_picture(asked: Services) -> None:
    from jobs import keys, shared_objects

    job_id = submit(asked)
    run(asked, stage.caption, job_id)
    answered(asked)
    asked.store.put(keys.prepared(HASHES[0]), b"png")
    with asked.database.writing() as session:
        session.connection().execute(sa.delete(JobPicture).where(col(JobPicture.job_id) == job_id))
        shared_objects.note_unused(session, [keys.prepared(HASHES[0])])
    shared_objects.collect(asked)
    with asked.database.reading() as session:
        assert HASHES[0] not in set(session.exec(select(GeneratedCaption.sha256)))


def test_the_captioning_step_is_on_the_training_queue_if_the_captioner_is(
    asked: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(pipeline, "forget_result", lambda _: None)
    monkeypatch.setattr(pipeline, "chain", lambda *steps: SimpleNamespace(apply_async=lambda: sent.extend(steps)))
    job_id = submit(asked)
    pipeline.launch(asked, job_id, "msg")
    assert [(one.task, one.options.get("queue")) for one in sent[:2]] == [
        ("imprint.caption", None), ("imprint.dataset", None),
    ]  # fmt: skip
    sent.clear()
    here = Services(asked.settings.model_copy(update={"caption_task": None, "captioner": "/models/florence"}))
    pipeline.launch(here, job_id, "msg")
    assert sent[0].options["queue"] == "train.sd15"
    assert json.loads(json.dumps([one.task for one in sent]))[-1] == "imprint.settle"
    here.database.close()
