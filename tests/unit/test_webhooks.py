"""What a webhook says, how it is signed, and what each answer to it leads to."""

import base64
import json
import math
import secrets as random_bytes
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from core.clock import utcnow
from notifications import retries, webhooks
from notifications.retries import SCHEDULE_S, Verdict, outcome_of
from notifications.signing import parse_secrets, sign
from notifications.webhook_payload import (
    EVENTS,
    MAX_BODY_BYTES,
    Event,
    FileAddresses,
    Notice,
    NoticeJob,
    WebhookBody,
    webhook_body,
)
from tests.samples import FULL
from tests.unit.test_view import without_prose

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
JOB: dict[str, Any] = {
    "job_id": "job_1",
    "model_id": "model_1",
    "owner_id": "ada",
    "attempt": 1,
    "credits": {"held": 0, "charged": 80, "refunded": 20},
    "failure": None,
    "lora": {"key": "models/model_1/lora_weights.safetensors", "sha256": "ab" * 32, "bytes": 3_300_000},
    "subject_id": "dog",
    "details": "not told",
}
FAILED = JOB | {"failure": {"code": "worker_lost", "message": "no worker survived", "details": {}}, "lora": None}


def secret() -> str:
    return "whsec_" + base64.b64encode(random_bytes.token_bytes(32)).decode()


def sent(job: dict[str, Any], event: Event, addresses: FileAddresses | None = None) -> bytes:
    stored = NoticeJob.model_validate(job)
    return webhook_body(stored, event, sequence=3, at=NOW, addresses=addresses).to_bytes()


def body(job: dict[str, Any], event: Event, addresses: FileAddresses | None = None) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(sent(job, event, addresses))
    return content


# ---- what it says ----


def test_completed_comes_with_the_model() -> None:
    assert body(JOB, "training.completed") == {
        "training_status": "completed",
        "model_path": "models/model_1/lora_weights.safetensors",
        "type": "training.completed",
        "timestamp": "2026-11-21T12:00:00.000Z",
        "data": {
            "training_id": "job_1",
            "attempt": 1,
            "sequence": 3,
            "credits": {"held": 0, "charged": 80, "refunded": 20},
            "model_id": "model_1",
            "owner_id": "ada",
            "subject_id": "dog",
            "artifact": {
                "sha256": "ab" * 32, "bytes": 3_300_000, "key": "models/model_1/lora_weights.safetensors"
            },
        },
    }  # fmt: skip


def test_a_completed_model_is_named_by_addresses_that_a_backend_can_open() -> None:
    def named(addresses: FileAddresses) -> dict[str, Any]:
        found = body(JOB, "training.completed", addresses)
        return {name: found[name] for name in ("model_path", "model_url") if name in found}

    uri, link = "s3://bucket/some/models/model_1/lora_weights.safetensors", "https://s3.example/x?X-Amz-Signature=y"
    assert named(FileAddresses(uri)) == {"model_path": uri}
    assert named(FileAddresses(uri, link)) == {"model_path": uri, "model_url": link}


def test_a_notice_returns_what_the_request_gave() -> None:
    given = {
        "style_id": 4711, "message_id": "m-1", "idempotency_key": "k", "reference": {"order": [1, None, "é"]}
    }  # fmt: skip
    for event, job in (("training.processing", JOB), ("training.failed", FAILED), ("training.completed", JOB)):
        assert given.items() <= body(job | given, event)["data"].items()
        assert not given.keys() & body(job, event)["data"].keys()


def test_failed_comes_with_the_reason() -> None:
    content = body(FAILED, "training.failed")
    assert content["training_status"] == "failed"
    assert content["failure_reason"] == "no worker survived"
    assert (content["data"]["failure_code"], content["data"]["retryable"]) == ("worker_lost", True)
    assert "model_path" not in content
    assert "artifact" not in content["data"]


def test_processing_and_cancelled() -> None:
    assert body(JOB | {"lora": None}, "training.processing")["training_status"] == "processing"
    cancelled = FAILED | {"failure": {"code": "cancelled", "message": "cancelled by the owner"}}
    content = body(cancelled, "training.cancelled")
    assert (content["training_status"], content["type"]) == ("failed", "training.cancelled")
    assert (content["data"]["failure_code"], content["data"]["retryable"]) == ("cancelled", False)


def test_only_known_events_are_sent() -> None:
    with pytest.raises(ValueError, match=r"training\.paused"):
        Notice.model_validate({"webhook_url": "https://app.example", "event": "training.paused", "job": JOB})


def test_a_stored_notice_makes_the_same_webhook_and_has_no_more_than_that_needs() -> None:
    notice = Notice(webhook_url="https://app.example", event="training.completed", job=NoticeJob.model_validate(JOB))
    stored = json.loads(json.dumps(notice.model_dump()))
    assert "details" not in stored["job"]
    assert Notice.model_validate(stored) == notice
    assert sent(stored["job"], stored["event"]) == sent(JOB, "training.completed")


def test_a_notice_of_another_version_is_sent() -> None:
    stored = {"webhook_url": "https://app.example", "event": "training.processing", "job": {"job_id": "j", "new": 1}}
    assert body(Notice.model_validate(stored).job.model_dump(), "training.processing")["data"]["training_id"] == "j"


RETURNED = {"style_id": 4711, "message_id": "m-1", "idempotency_key": "k", "reference": {"order": [1, None, "é"]}}
REFUSED = {
    "job_id": None, "subject_id": "dog", "style_id": "s", "message_id": "m",
    "failure": {"code": "spec_invalid", "message": "2 faults", "details": {"faults": {"rank": "too small"}}},
}  # fmt: skip
LINKED = FileAddresses("s3://b/x", "https://s3.example/x?y")
HEAD, PAID = (
    '"timestamp":"2026-11-21T12:00:00.000Z","data":{',
    '"sequence":3,"credits":{"held":0,"charged":80,"refunded":20}',
)
OWNED = '"model_id":"model_1","owner_id":"ada","subject_id":"dog"'
FROM_REQUEST = f'{OWNED},"style_id":4711,"idempotency_key":"k","message_id":"m-1","reference":{{"order":[1,null,"é"]}}'


@pytest.mark.parametrize(
    ("job", "event", "addresses", "expected"),
    [
        (
            JOB | RETURNED,
            "training.completed",
            LINKED,
            '{"training_status":"completed","model_path":"s3://b/x","model_url":"https://s3.example/x?y",'
            f'"type":"training.completed",{HEAD}"training_id":"job_1","attempt":1,{PAID},{FROM_REQUEST},'
            f'"artifact":{{"sha256":"{"ab" * 32}","bytes":3300000,'
            '"key":"models/model_1/lora_weights.safetensors"}}}',
        ),
        (
            FAILED | RETURNED,
            "training.failed",
            None,
            '{"training_status":"failed","failure_reason":"no worker survived",'
            f'"type":"training.failed",{HEAD}"training_id":"job_1","attempt":1,{PAID},{FROM_REQUEST},'
            '"failure_code":"worker_lost","retryable":true}}',
        ),
        (
            JOB | {"lora": None},
            "training.processing",
            None,
            f'{{"training_status":"processing","type":"training.processing",{HEAD}"training_id":"job_1","attempt":1,'
            f"{PAID},{OWNED}}}}}",
        ),
        (
            REFUSED,
            "training.refused",
            None,
            '{"training_status":"failed","failure_reason":"2 faults","type":"training.refused",'
            f'{HEAD}"training_id":null,"attempt":null,"sequence":3,"credits":{{"held":0,"charged":0,"refunded":0}},'
            '"subject_id":"dog","style_id":"s","message_id":"m","failure_code":"spec_invalid","retryable":false,'
            '"faults":{"rank":"too small"}}}',
        ),
        (
            FAILED | {"reference": {"x": "é" * 1200}, "failure": None},
            "training.cancelled",
            None,
            f'{{"training_status":"failed","failure_reason":null,"type":"training.cancelled",{HEAD}'
            f'"training_id":"job_1","attempt":1,{PAID},{OWNED},"reference":null,"failure_code":null,"retryable":false}}}}',
        ),
    ],
    ids=["completed", "failed", "processing", "refused", "cancelled"],
)
def test_the_bytes_are_those_that_applications_know(
    job: dict[str, Any], event: Event, addresses: FileAddresses | None, expected: str
) -> None:
    assert sent(job, event, addresses).decode() == expected


def test_the_schema_is_the_one_that_applications_know() -> None:
    """A change here is a change for every application: name it in CHANGELOG.md, then write the file anew."""
    schema = WebhookBody.model_json_schema(mode="serialization")
    assert without_prose(schema) == json.loads(Path(__file__).with_name("webhook_body.json").read_text())


@settings(max_examples=100 if FULL else 20)
@given(st.text(), st.text(min_size=1), st.sampled_from(["é", "\0", '"', "😀", "\ud800", "\u2028"]))
def test_a_body_stays_under_20_kb_whatever_a_job_says(reason: str, code: str, letter: str) -> None:
    failure = {"code": code * 100, "message": reason + letter * 30_000}
    lora = {"key": letter * 9000, "sha256": letter * 9000, "bytes": 10**15}
    names = dict.fromkeys(
        ("job_id", "model_id", "owner_id", "subject_id", "style_id", "message_id", "idempotency_key"), letter * 9000
    )
    failure["details"] = {"faults": {f"{letter * number}": letter * 9000 for number in range(30)}}
    job = JOB | names | {"failure": failure, "lora": lora, "reference": {"x": "é" * 990}}
    addresses = FileAddresses(letter * 9000, "x" * 3000)
    stored = NoticeJob.model_validate(job)
    for event in EVENTS:
        content = webhook_body(stored, event, sequence=10**9, at=NOW, addresses=addresses).to_bytes()
        assert len(content) < MAX_BODY_BYTES
        json.loads(content)


def test_where_it_goes() -> None:
    assert webhooks.status_url("https://app.example", "models", "m1") == "https://app.example/api/models/m1/status"
    assert webhooks.status_url("https://app.example/x/", "subjects", "a/../b?c") == (
        "https://app.example/x/api/subjects/a%2F..%2Fb%3Fc/status"
    )


# ---- how it is signed ----


@pytest.mark.parametrize("content", [b"{}", '{"a":"é😀"}'.encode(), b'{"a": "' + b"x" * 10_000 + b'"}'])
def test_a_standard_receiver_accepts_the_signature(content: bytes) -> None:
    key = secret()
    timestamp_s = int(utcnow().timestamp())
    header = sign(parse_secrets(key), "msg_1", timestamp_s, content)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(timestamp_s), "webhook-signature": header}
    assert Webhook(key).verify(content, headers) == json.loads(content)
    for changed in ({"webhook-id": "msg_2"}, {"webhook-timestamp": str(timestamp_s - 1)}):
        with pytest.raises(WebhookVerificationError):
            Webhook(key).verify(content, headers | changed)
    with pytest.raises(WebhookVerificationError):
        Webhook(key).verify(content + b" ", headers)


def test_while_a_secret_is_changed_both_are_good() -> None:
    old, new, other = secret(), secret(), secret()
    timestamp_s = int(utcnow().timestamp())
    header = sign(parse_secrets(f" {new}  {old}"), "msg_1", timestamp_s, b"{}")
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(timestamp_s), "webhook-signature": header}
    for key in (old, new):
        Webhook(key).verify(b"{}", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(other).verify(b"{}", headers)


def test_the_example_of_the_standard() -> None:
    key = parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    header = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert header == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("text", ["abc", "whsec_", "whsec_!!!!", "whsec_" + "A" * 28, "whsec_" + "A" * 100])
def test_a_bad_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="webhook secret 2") as refusal:
        parse_secrets(f"{secret()} {text}")
    assert len(text) < 8 or text[6:] not in str(refusal.value)


def test_a_secret_may_come_unpadded() -> None:
    assert parse_secrets("whsec_" + base64.b64encode(b"x" * 25).decode().rstrip("=")) == [b"x" * 25]


# ---- what each answer leads to ----


def verdict(status: int, attempts: int = 0, headers: dict[str, str] | None = None) -> retries.Outcome:
    return outcome_of(status, headers or {}, attempts=attempts, message_id="msg_1", now=NOW)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_sent(status: int) -> None:
    assert verdict(status).verdict is Verdict.SENT


@pytest.mark.parametrize("status", [301, 302, 307, 308, 401, 403, 408, 425, 429, 500, 502, 503, 504, 599])
def test_what_may_pass_runs_through_the_whole_schedule(status: int) -> None:
    outcomes = [verdict(status, attempts) for attempts in range(len(SCHEDULE_S))]
    assert [outcome.verdict for outcome in outcomes] == [Verdict.RETRY] * 9 + [Verdict.DEAD]
    assert [outcome.alert for outcome in outcomes[:-1]] == [status in (401, 403)] * 9
    assert outcomes[-1].alert


@pytest.mark.parametrize("status", [400, 404, 405, 409, 413, 422])
def test_a_refusal_is_dead_after_three(status: int) -> None:
    assert [verdict(status, attempts).verdict for attempts in range(3)] == [
        Verdict.RETRY,
        Verdict.RETRY,
        Verdict.DEAD,
    ]


def test_410_disables_at_once() -> None:
    assert verdict(410).verdict is Verdict.DISABLED
    assert verdict(410).alert


def test_the_schedule_is_the_standard_one_with_jitter() -> None:
    assert SCHEDULE_S == (0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
    waits: dict[int, set[float]] = {}
    for attempts in range(9):
        for number in range(50):
            outcome = outcome_of(500, {}, attempts=attempts, message_id=f"msg_{number}", now=NOW)
            assert outcome.next_due is not None
            share = (outcome.next_due - NOW).total_seconds() / SCHEDULE_S[attempts + 1]
            assert 0.9 <= share <= 1.1
            waits.setdefault(attempts, set()).add(share)
    assert all(max(shares) - min(shares) > 0.1 for shares in waits.values())
    assert verdict(500, 3) == verdict(500, 3)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120),
        (" 7 ", 7),
        ("1", 5),  # sooner than the schedule has it
        ("99999999999999999999", 86_400),
        (format_datetime(NOW + timedelta(minutes=3), usegmt=True), 180),
        (format_datetime((NOW + timedelta(minutes=3)).astimezone(timezone(timedelta(hours=9)))), 180),
        (format_datetime(NOW + timedelta(days=300), usegmt=True), 86_400),
        (format_datetime(NOW - timedelta(days=300), usegmt=True), 5),
        ("", 5), ("soon", 5), ("-1", 5), ("1e3", 5), ("٣", 5), ("Wed, 99 Xyz 2026", 5),
    ],
)  # fmt: skip
def test_retry_after_is_honoured_within_bounds(text: str, seconds: int) -> None:
    outcome = verdict(503, headers={"Retry-After": text})
    assert outcome.next_due is not None
    assert math.isclose((outcome.next_due - NOW).total_seconds(), seconds, rel_tol=0.1)
