"""What a webhook says: the notice as the outbox stores it, and the JSON that is sent.

The JSON is a contract with applications: docs/task.md. A field that does not apply to an event is absent from it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from core.errors import FailureCode

Event = Literal[
    "training.processing",
    "training.review",  # the captions wait for their owner
    "training.completed",
    "training.failed",
    "training.cancelled",
    "training.not_started",  # about a subject, not a job: an automatic training that did not start
    "training.refused",  # about a message on RabbitMQ that became no job
]
EVENTS: tuple[Event, ...] = get_args(Event)
PROCESSING: Event = "training.processing"

MAX_BODY_BYTES = 20_000  # Standard Webhooks asks for less than 20 kB
MAX_REFERENCE_BYTES = 2000  # of the JSON of a request's `reference`
_MAX_FAULTS_BYTES = 3000
# In characters, of at most four bytes in all but links.
_MAX_REASON, _MAX_PATH, _MAX_LINK, _MAX_WORD = 1500, 700, 3000, 200

# Failures after which the same request may succeed.
_WORTH_RETRYING = {
    FailureCode.IMAGE_UNREACHABLE,
    FailureCode.BACKEND_UNREACHABLE,
    FailureCode.SCREENING_UNAVAILABLE,
    FailureCode.CAPTIONS_UNAVAILABLE,
    FailureCode.WORKER_LOST,
    FailureCode.TIMEOUT,
    FailureCode.UPLOAD_FAILED,
    FailureCode.LORA_INVALID,
    FailureCode.INTERNAL,
}


# ---- stored -----------------------------------------------------------------------------------------------------


class _Stored(BaseModel):
    # Other versions may have stored more, or less.
    model_config = ConfigDict(frozen=True, extra="ignore", from_attributes=True)


class NoticeCredits(_Stored):
    """The credits of the training at that moment."""

    held: int = 0
    charged: int = 0
    refunded: int = 0


class NoticeFailure(_Stored):
    """Why the training failed or was not started. `details` may have `faults` by field."""

    code: str | None = None
    message: str | None = None
    details: dict[str, Any] | None = None


class NoticeFile(_Stored):
    """The finished LoRA file in the object store."""

    key: str | None = None
    sha256: str | None = None
    bytes: int | None = None


class NoticeJob(_Stored):
    """What a notice has of a job, or of the subject or message that became none: then `job_id` is None."""

    job_id: str | None = None
    attempt: int | None = None
    credits: NoticeCredits | None = None
    failure: NoticeFailure | None = None
    lora: NoticeFile | None = None
    model_link: bool | None = None
    # What the request gave, so that the receiver finds its own records.
    model_id: str | None = None
    owner_id: str | None = None
    subject_id: str | None = None
    style_id: str | int | None = None
    idempotency_key: str | None = None
    message_id: str | None = None
    reference: dict[str, Any] | None = None


class Notice(_Stored):
    """A notice in the outbox: its destination, the event, and the job as it was at that moment."""

    webhook_url: str
    event: Event
    job: NoticeJob


# ---- sent -------------------------------------------------------------------------------------------------------


class WebhookArtifact(BaseModel):
    """The file of a completed training."""

    sha256: str | None
    bytes: int | None
    key: str | None


class WebhookData(BaseModel):
    """The training. A receiver that orders by `sequence` is not confused by a late copy."""

    training_id: str | None
    attempt: int | None
    sequence: int
    credits: NoticeCredits
    # As the request gave it; what it did not give is absent. A `reference` that is too large is None.
    model_id: str | None = None
    owner_id: str | None = None
    subject_id: str | None = None
    style_id: str | int | None = None
    idempotency_key: str | None = None
    message_id: str | None = None
    reference: dict[str, Any] | None = None
    # Of a completed training.
    artifact: WebhookArtifact | None = None
    # Of a failed one.
    failure_code: str | None = None
    retryable: bool | None = None
    faults: dict[str, str] | None = None


class WebhookBody(BaseModel):
    """The JSON of a webhook."""

    training_status: Literal["processing", "completed", "failed"]
    # Of a completed training.
    model_path: str | None = None
    model_url: str | None = None
    # Of a failed one.
    failure_reason: str | None = None
    type: Event
    timestamp: str  # when the event happened, in UTC
    data: WebhookData

    def to_bytes(self) -> bytes:
        """The JSON, without the fields that were not set."""
        return _json(self.model_dump(exclude_unset=True))


@dataclass(frozen=True)
class FileAddresses:
    """Where a LoRA file is: for backends with access to the object store, and on request for everybody."""

    uri: str
    link: str | None = None


def status_of(event: Event) -> Literal["processing", "completed", "failed"]:
    """The status that an event gives the receiver's model."""
    if event in (PROCESSING, "training.review"):
        return "processing"
    return "completed" if event == "training.completed" else "failed"


def webhook_body(
    job: NoticeJob, event: Event, *, sequence: int, at: datetime, addresses: FileAddresses | None = None
) -> WebhookBody:
    """The JSON of an event, always under 20 kB. `at` is when the event happened, not when it is sent."""
    status = status_of(event)
    head: dict[str, Any] = {"training_status": status}
    data: dict[str, Any] = {
        "training_id": _text(job.job_id, _MAX_WORD),
        "attempt": job.attempt,
        "sequence": sequence,
        "credits": NoticeCredits(**(job.credits or NoticeCredits()).model_dump()),
        **_returned(job),
    }
    if status == "completed":
        lora = job.lora or NoticeFile()
        key = _text(lora.key, _MAX_PATH)
        head["model_path"] = _text(addresses.uri, _MAX_PATH) if addresses else key
        if addresses and addresses.link and len(addresses.link) <= _MAX_LINK:
            head["model_url"] = addresses.link
        data["artifact"] = WebhookArtifact(sha256=_text(lora.sha256, _MAX_WORD), bytes=lora.bytes, key=key)
    if status == "failed":
        failure = job.failure or NoticeFailure()
        head["failure_reason"] = _text(failure.message, _MAX_REASON)
        data["failure_code"] = _text(failure.code, _MAX_WORD)
        data["retryable"] = failure.code in _WORTH_RETRYING
        if faults := _faults(failure):
            data["faults"] = faults
    timestamp = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return WebhookBody(**head, type=event, timestamp=timestamp, data=WebhookData(**data))


def reference_size(reference: Any) -> int:
    """The bytes that a `reference` needs in a webhook. Raises ValueError for what is no JSON or no Unicode."""
    return len(_json(reference))


def _returned(job: NoticeJob) -> dict[str, Any]:
    """What the request gave, under its own names."""
    names = ("model_id", "owner_id", "subject_id", "style_id", "idempotency_key", "message_id")
    found = {name: value for name in names if (value := getattr(job, name)) is not None}
    shown = {name: value if isinstance(value, int) else _text(value, _MAX_WORD) for name, value in found.items()}
    if job.reference is None:
        return shown
    return {**shown, "reference": job.reference if reference_size(job.reference) <= MAX_REFERENCE_BYTES else None}


def _faults(failure: NoticeFailure) -> dict[str, str]:
    """The faults of a refused request by field, as many as there is room for."""
    shown: dict[str, str] = {}
    room = _MAX_FAULTS_BYTES
    faults: Mapping[str, Any] = (failure.details or {}).get("faults") or {}
    for name, fault in faults.items():
        field, words = _text(name, _MAX_WORD) or "", _text(fault, _MAX_WORD) or ""
        room -= len(_json([field, words]))
        if room < 0:
            break
        shown[field] = words
    return shown


def _text(value: object, longest: int) -> str | None:
    """A value as text of limited length, without control characters, which JSON would make longer."""
    if value is None:
        return None
    text = "".join(character if character.isprintable() else " " for character in str(value))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
