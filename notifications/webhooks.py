"""The webhook of a training: `PATCH {base}/api/models/{id}/status`, signed as Standard Webhooks 1.0 has it.

What is about no training, and so about no model, goes to `{base}/api/subjects/{id}/status`.

`put` queues a notice in the transaction that changes the job. Later a task claims it, calls `deliver` with no
transaction open, and `record` in a transaction of its own.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol
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
    "training.refused": "failed",  # about a message on RabbitMQ that became no job
}
MAX_BODY_BYTES = 20_000  # Standard Webhooks asks for less than 20 kB
_MAX_REASON, _MAX_PATH, _MAX_LINK, _MAX_WORD = (
    1500,
    700,
    3000,
    200,
)  # characters, of at most four bytes in all but links
MAX_REFERENCE_BYTES = 2000  # of the JSON of a request's `reference`
_MAX_FAULTS_BYTES = 3000

# Failures after which the same request may succeed.
_WORTH_RETRYING = {
    FailureCode.IMAGE_UNREACHABLE,
    FailureCode.BACKEND_UNREACHABLE,
    FailureCode.SCREENING_UNAVAILABLE,
    FailureCode.WORKER_LOST,
    FailureCode.TIMEOUT,
    FailureCode.UPLOAD_FAILED,
    FailureCode.LORA_INVALID,
    FailureCode.INTERNAL,
}


@dataclass(frozen=True)
class FileAddresses:
    """Where a LoRA file is: for backends with access to the object store, and on request for everybody."""

    uri: str
    link: str | None = None


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
    kept = ("job_id", "attempt", "credits", "failure", "lora", "model_link", *_RETURNED)
    return {"webhook_url": webhook_url, "event": event, "job": {name: job.get(name) for name in kept}}


# What a notice has of the request, so that its receiver knows what it is about.
_RETURNED = ("model_id", "owner_id", "subject_id", "style_id", "idempotency_key", "message_id", "reference")


def put(session: Session, job: Mapping[str, Any], event: str, webhook_url: str) -> str:
    """Queue a notice about a job (its public view, and what its notices repeat). Returns the message's id.

    A final event drops a `training.processing` that still waits. `job_id` is None for a notice about no job.
    """
    content = payload(job, event, webhook_url)
    job_id = job["job_id"]
    if job_id is not None and event != PROCESSING:
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


def body(
    job: Mapping[str, Any], event: str, *, sequence: int, at: datetime, addresses: FileAddresses | None = None
) -> bytes:
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
        **_returned(job),
    }
    content: dict[str, Any] = {"training_status": status}
    if status == "completed":
        lora = job.get("lora") or {}
        key = _text(lora.get("key"), _MAX_PATH)
        content["model_path"] = _text(addresses.uri, _MAX_PATH) if addresses else key
        if addresses and addresses.link and len(addresses.link) <= _MAX_LINK:
            content["model_url"] = addresses.link
        data["artifact"] = {"sha256": _text(lora.get("sha256"), _MAX_WORD), "bytes": lora.get("bytes"), "key": key}
    if status == "failed":
        failure = job.get("failure") or {}
        content["failure_reason"] = _text(failure.get("message"), _MAX_REASON)
        data["failure_code"] = _text(failure.get("code"), _MAX_WORD)
        data["retryable"] = failure.get("code") in _WORTH_RETRYING
        if faults := _faults(failure):
            data["faults"] = faults
    timestamp = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    content |= {"type": event, "timestamp": timestamp, "data": data}
    return _json(content)


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def reference_size(reference: Any) -> int:
    """The bytes that a `reference` needs in a notice. Raises ValueError for what is no JSON or no Unicode."""
    return len(_json(reference))


def _returned(job: Mapping[str, Any]) -> dict[str, Any]:
    """What the request gave, under its own names; what it did not give is left out."""
    found = {name: job[name] for name in _RETURNED if job.get(name) is not None}
    shown = {name: value if isinstance(value, int) else _text(value, _MAX_WORD) for name, value in found.items()}
    if "reference" in found:
        shown["reference"] = found["reference"] if reference_size(found["reference"]) <= MAX_REFERENCE_BYTES else None
    return shown


def _faults(failure: Mapping[str, Any]) -> dict[str, str]:
    """The faults of a refused request by field, as many as there is room for."""
    shown: dict[str, str] = {}
    room = _MAX_FAULTS_BYTES
    for name, fault in ((failure.get("details") or {}).get("faults") or {}).items():
        field, words = _text(name, _MAX_WORD) or "", _text(fault, _MAX_WORD) or ""
        room -= len(_json([field, words]))
        if room < 0:
            break
        shown[field] = words
    return shown


def status_url(webhook_url: str, kind: Literal["models", "subjects"], id_: str) -> str:
    """The address for the status of a model, or of a subject, below the application's base address."""
    parts = urlsplit(webhook_url)
    path = f"{parts.path.rstrip('/')}/api/{kind}/{quote(id_, safe='')}/status"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def deliver(
    message: Message,
    sender: Sender,
    now: datetime,
    *,
    secrets: Sequence[bytes] = (),
    addresses: FileAddresses | None = None,
) -> Outcome:
    """Make one attempt to deliver a message of `put`. The body of the answer is ignored.

    Without secrets the webhook is sent unsigned, for receivers in the same network.
    """
    notice = message.payload
    job, event = notice["job"], notice["event"]
    content = body(job, event, sequence=message.sequence, at=message.created_at, addresses=addresses)
    timestamp_s = int(now.timestamp())
    headers = {
        "content-type": "application/json",
        "webhook-id": message.id,
        "webhook-timestamp": str(timestamp_s),
        **tracing.current_headers(),
    }
    if secrets:
        headers["webhook-signature"] = sign(secrets, message.id, timestamp_s, content)
    url = _status_url(notice["webhook_url"], event, job)
    try:
        status, answer = sender("PATCH", url, content, headers)
    except ImprintError as error:
        if not error.retryable:
            return Outcome(Verdict.DEAD, error.message, alert=True)
        return retries.next_attempt(error.message, attempts=message.attempts, message_id=message.id, now=now)
    return retries.outcome_of(status, answer, attempts=message.attempts, message_id=message.id, now=now)


def _status_url(webhook_url: str, event: str, job: Mapping[str, Any]) -> str:
    """Where a notice goes. In notices of earlier versions, `model_id` is a subject's id if nothing was started."""
    subject = job.get("subject_id") or (job["model_id"] if event == "training.not_started" else None)
    if event == "training.not_started" or (job.get("model_id") or job.get("job_id")) is None:
        return status_url(webhook_url, "subjects", str(subject))
    return status_url(webhook_url, "models", job.get("model_id") or job["job_id"])


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
