"""Deliveries to a real receiver on loopback, that checks signatures with the standard's own package."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from core.clock import utcnow
from core.outbound.guard import Guard
from notifications import webhooks
from notifications.messages import Message
from notifications.retries import SCHEDULE_S, Verdict
from notifications.signing import parse_secrets
from notifications.webhook_payload import Notice, NoticeJob
from notifications.webhooks import Sender
from tests.servers.receiver import Receiver, receiver

KEY = "whsec_" + "A" * 40
JOB = NoticeJob.model_validate(
    {
        "job_id": "job_1",
        "model_id": "model_1",
        "attempt": 1,
        "credits": {"held": 0, "charged": 80, "refunded": 20},
        "lora": {"key": "models/model_1/lora_weights.safetensors", "sha256": "ab" * 32, "bytes": 3},
    }
)


@pytest.fixture
def application() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def sender_to(application: Receiver) -> Sender:
    """The guarded client itself, allowed to call this one receiver on loopback."""
    return Guard(allow_hosts=[application.address], timeout_s=10).send


def message_to(base: str) -> Message:
    now = utcnow()
    payload = Notice(webhook_url=base, event="training.completed", job=JOB).model_dump()
    return Message("msg_1", "notice", "training.completed", "job_1", "ada", base, 2, payload, now, now, 0)


def test_a_delivery_as_the_standard_has_it(application: Receiver) -> None:
    message = message_to(f"{application.url}/")
    outcome = webhooks.deliver(message, sender_to(application), utcnow(), secrets=parse_secrets(KEY))
    assert (outcome.verdict, outcome.status) == (Verdict.SENT, 204)
    [got] = application.got
    assert (got.method, got.path) == ("PATCH", "/app/api/models/model_1/status")
    assert got.headers["content-type"] == "application/json"
    content = got.verified(KEY)
    assert content["training_status"] == "completed"
    assert content["data"]["sequence"] == 2


def test_attempts_share_the_id_and_the_body_but_not_the_time(application: Receiver) -> None:
    application.refuse(500)
    message, sender, now = message_to(application.url), sender_to(application), utcnow()
    first = webhooks.deliver(message, sender, now - timedelta(seconds=100), secrets=parse_secrets(KEY))
    assert first.verdict is Verdict.RETRY
    assert (
        webhooks.deliver(replace(message, attempts=1), sender, now, secrets=parse_secrets(KEY)).verdict is Verdict.SENT
    )
    before, after = application.got
    assert before.body == after.body
    assert before.id == after.id == "msg_1"
    assert int(after.headers["webhook-timestamp"]) - int(before.headers["webhook-timestamp"]) == 100
    for got in (before, after):
        got.verified(KEY)


def test_a_redirect_is_a_failure_and_is_not_followed(application: Receiver) -> None:
    with receiver() as witness:
        application.refuse(307, headers={"location": witness.url})
        outcome = webhooks.deliver(message_to(application.url), sender_to(application), utcnow())
        assert (outcome.verdict, outcome.status) == (Verdict.RETRY, 307)
        assert witness.got == []


def test_retry_after_comes_through(application: Receiver) -> None:
    application.refuse(429, headers={"Retry-After": "77"})
    now = utcnow()
    outcome = webhooks.deliver(message_to(application.url), sender_to(application), now)
    assert outcome.next_due == now + timedelta(seconds=77)


def test_without_a_secret_it_goes_unsigned(application: Receiver) -> None:
    webhooks.deliver(message_to(application.url), sender_to(application), utcnow())
    [got] = application.got
    assert "webhook-signature" not in got.headers
    assert json.loads(got.body)["type"] == "training.completed"


def test_no_answer_is_tried_through_the_whole_schedule() -> None:
    with receiver() as gone:
        message, sender, now = message_to(gone.url), sender_to(gone), utcnow()
    verdicts = [
        webhooks.deliver(replace(message, attempts=attempts), sender, now).verdict
        for attempts in range(len(SCHEDULE_S))
    ]
    assert verdicts == [Verdict.RETRY] * 9 + [Verdict.DEAD]


def test_an_address_that_we_will_not_call_is_final(application: Receiver) -> None:
    outcome = webhooks.deliver(message_to(application.url), Guard(timeout_s=10).send, utcnow())
    assert (outcome.verdict, outcome.alert) == (Verdict.DEAD, True)
    assert application.got == []
