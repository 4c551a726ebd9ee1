"""The webhook of a training: `PATCH {base}/api/models/{id}/status`, signed as Standard Webhooks 1.0 has it.

`put` queues a notice in the transaction that changes the job. Later a task claims it, calls `deliver` with no
transaction open, and `record` in a transaction of its own.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import quote, urlsplit, urlunsplit

from sqlalchemy.orm import Session

from core import tracing
from core.clock import utcnow
from core.errors import FailureCode, ImprintError
from notifications import destinations, outbox, receivers, retries
from notifications.messages import SUPERSEDED, Message
from notifications.retries import Outcome, Verdict
from notifications.signing import sign

log = logging.getLogger(__name__)

PROCESSING = "training.processing"
# The events, and the status that each of them gives the receiver's model.
EVENTS = {
    PROCESSING: "processing",
    "training.completed": "completed",
    "training.failed": "failed",
    "training.cancelled": "failed",
    "training.not_started": "failed",  # about a subject, not a job: an automatic training that did not start
}
MAX_BODY_BYTES = 20_000  # Standard Webhooks asks for less than 20 kB
_MAX_REASON, _MAX_PATH, _MAX_WORD = 2000, 1000, 200  # characters, of at most four bytes

# Failures after which the same request may succeed.
_WORTH_RETRYING = {
    FailureCode.IMAGE_UNREACHABLE,
    FailureCode.BACKEND_UNREACHABLE,
    FailureCode.WORKER_LOST,
    FailureCode.TIMEOUT,
    FailureCode.UPLOAD_FAILED,
    FailureCode.LORA_INVALID,
    FailureCode.INTERNAL,
}


class Sender(Protocol):
    """A client that sends one request without following redirects, and returns status and headers of the answer.

    Raises an ImprintError: retryable if there was no answer in time, final if the address must not be called.
    """

    def __call__(
        self, method: str, url: str, content: bytes, headers: Mapping[str, str], /
    ) -> tuple[int, Mapping[str, str]]: ...


def payload(job: Mapping[str, Any], event: str, webhook_url: str) -> dict[str, Any]:
    """What a notice stores: its destination, the event, and the public view of the job at that moment."""
    if event not in EVENTS:
        raise ValueError(f"unknown event {event}: must be one of {', '.join(EVENTS)}")
    kept = ("job_id", "model_id", "attempt", "credits", "failure", "lora")
    return {"webhook_url": webhook_url, "event": event, "job": {name: job.get(name) for name in kept}}


def put(session: Session, job: Mapping[str, Any], event: str, webhook_url: str) -> str:
    """Queue a notice about a job (its public view). Returns the message's id.

    A final event drops a `training.processing` that still waits.
    """
    content = payload(job, event, webhook_url)
    job_id = str(job["job_id"])
    if event != PROCESSING:
        outbox.drop_unsent(session, job_id, ["notice"], PROCESSING)
    return outbox.put(
        session,
        "notice",
        job_id=job_id,
        owner_id=job.get("owner_id"),
        topic=event,
        destination=webhook_url,
        payload=content,
    )


def body(job: Mapping[str, Any], event: str, *, sequence: int, at: datetime) -> bytes:
    """The JSON of an event, always under 20 kB. `at` is when the event happened, not when it is sent.

    A completed training has `model_path` and `artifact`, a failed one `failure_reason`, `failure_code` and `retryable`.
    A receiver that orders by `sequence` is not confused by a late copy.
    """
    status = EVENTS[event]
    paid = job.get("credits") or {}
    data: dict[str, Any] = {
        "training_id": _text(job.get("job_id"), _MAX_WORD),
        "attempt": job.get("attempt"),
        "sequence": sequence,
        "credits": {name: paid.get(name, 0) for name in ("held", "charged", "refunded")},
    }
    content: dict[str, Any] = {"training_status": status}
    if status == "completed":
        lora = job.get("lora") or {}
        content["model_path"] = _text(lora.get("key"), _MAX_PATH)
        data["artifact"] = {"sha256": _text(lora.get("sha256"), _MAX_WORD), "bytes": lora.get("bytes")}
    if status == "failed":
        failure = job.get("failure") or {}
        content["failure_reason"] = _text(failure.get("message"), _MAX_REASON)
        data["failure_code"] = _text(failure.get("code"), _MAX_WORD)
        data["retryable"] = failure.get("code") in _WORTH_RETRYING
    timestamp = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    content |= {"type": event, "timestamp": timestamp, "data": data}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def status_url(webhook_url: str, model_id: str) -> str:
    """The address for a model's status: `/api/models/{id}/status` below the application's base address."""
    parts = urlsplit(webhook_url)
    path = f"{parts.path.rstrip('/')}/api/models/{quote(model_id, safe='')}/status"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def deliver(message: Message, sender: Sender, now: datetime, *, secrets: Sequence[bytes] = ()) -> Outcome:
    """Make one attempt to deliver a message of `put`. The body of the answer is ignored.

    Without secrets the webhook is sent unsigned, for receivers in the same network.
    """
    notice = message.payload
    job, event = notice["job"], notice["event"]
    content = body(job, event, sequence=message.sequence, at=message.created_at)
    timestamp_s = int(now.timestamp())
    headers = {
        "content-type": "application/json",
        "webhook-id": message.id,
        "webhook-timestamp": str(timestamp_s),
        **tracing.current_headers(),
    }
    if secrets:
        headers["webhook-signature"] = sign(secrets, message.id, timestamp_s, content)
    url = status_url(notice["webhook_url"], job.get("model_id") or job["job_id"])
    try:
        status, answer = sender("PATCH", url, content, headers)
    except ImprintError as error:
        if not error.retryable:
            return Outcome(Verdict.DEAD, error.message, alert=True)
        return retries.next_attempt(error.message, attempts=message.attempts, message_id=message.id, now=now)
    return retries.outcome_of(status, answer, attempts=message.attempts, message_id=message.id, now=now)


def record(session: Session, message: Message, outcome: Outcome, now: datetime | None = None) -> None:
    """Record the outcome of an attempt, and what it means for other messages."""
    now = now or utcnow()
    if outcome.alert:
        log.error("%s %s of job %s: %s (%s)", message.kind, message.id, message.job_id, outcome.error, outcome.verdict)
    if outcome.verdict is Verdict.SENT:
        outbox.mark_sent(session, message.id, now)
        if message.destination is not None:
            destinations.resume(session, message.destination, now)
        return
    next_due, error = outcome.next_due, outcome.error
    if next_due is not None and message.topic == PROCESSING and outbox.is_superseded(session, message):
        # The final event was queued while this one was being sent, and waits for it.
        next_due, error = None, SUPERSEDED
    outbox.mark_failed(session, message.id, error, next_due, now)
    if outcome.is_down and outcome.next_due is not None and message.destination is not None and message.attempts > 0:
        # The receiver has been down for a while.
        until = min(outcome.next_due, now + retries.LONGEST_POSTPONEMENT)
        destinations.postpone(session, message.destination, until, now)
    if outcome.verdict is Verdict.DISABLED and message.destination is not None:
        if message.owner_id is not None:
            receivers.disable(session, message.owner_id, message.destination, error, now)
        destinations.drop(session, message.destination, message.owner_id, reason=error, now=now)


def _text(value: object, longest: int) -> str | None:
    """A value as text of limited length, without control characters, which JSON would make longer."""
    if value is None:
        return None
    text = "".join(character if character.isprintable() else " " for character in str(value))
    return text if len(text) <= longest else text[: longest - 1] + "…"
