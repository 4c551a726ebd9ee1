"""The webhook of a training: `PATCH {base}/api/models/{id}/status`, signed as Standard Webhooks 1.0 has it.

What is about no training, and so about no model, goes to `{base}/api/subjects/{id}/status`.

`put` queues a notice in the transaction that changes the job. Later a task claims it, calls `deliver` with no
transaction open, and `record` in a transaction of its own.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, Protocol
from urllib.parse import quote, urlsplit, urlunsplit

from sqlalchemy.orm import Session

from core.clock import utcnow
from core.errors import ImprintError
from core.telemetry import tracing
from notifications import destinations, outbox, receivers, retries
from notifications.messages import SUPERSEDED, Message
from notifications.retries import Outcome, Verdict
from notifications.signing import sign
from notifications.webhook_payload import PROCESSING, Event, FileAddresses, Notice, NoticeJob, webhook_body

log = logging.getLogger(__name__)


class Sender(Protocol):
    """A client that sends one request without following redirects, and returns status and headers of the answer.

    Raises an ImprintError: retryable if there was no answer in time, final if the address must not be called.
    """

    def __call__(
        self, method: str, url: str, content: bytes, headers: Mapping[str, str], /
    ) -> tuple[int, Mapping[str, str]]: ...


def notice_of(message: Message) -> Notice:
    """The notice in a message of `put`."""
    return Notice.model_validate(message.payload)


def put(session: Session, job: NoticeJob, event: Event, webhook_url: str) -> str:
    """Queue a notice. Returns the message's id. A final event drops a `training.processing` that still waits."""
    notice = Notice(webhook_url=webhook_url, event=event, job=job)
    if job.job_id is not None and event != PROCESSING:
        outbox.drop_unsent(session, job.job_id, ["notice"], PROCESSING)
    return outbox.put(
        session,
        "notice",
        job_id=job.job_id,
        owner_id=job.owner_id,
        topic=event,
        destination=webhook_url,
        payload=notice.model_dump(),
    )


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
    notice = notice_of(message)
    body = webhook_body(notice.job, notice.event, sequence=message.sequence, at=message.created_at, addresses=addresses)
    content = body.to_bytes()
    timestamp_s = int(now.timestamp())
    headers = {
        "content-type": "application/json",
        "webhook-id": message.id,
        "webhook-timestamp": str(timestamp_s),
        **tracing.current_headers(),
    }
    if secrets:
        headers["webhook-signature"] = sign(secrets, message.id, timestamp_s, content)
    url = _status_url(notice)
    try:
        status, answer = sender("PATCH", url, content, headers)
    except ImprintError as error:
        if not error.retryable:
            return Outcome(Verdict.DEAD, error.message, alert=True)
        return retries.next_attempt(error.message, attempts=message.attempts, message_id=message.id, now=now)
    return retries.outcome_of(status, answer, attempts=message.attempts, message_id=message.id, now=now)


def _status_url(notice: Notice) -> str:
    """Where a notice goes. In notices of earlier versions, `model_id` is a subject's id if nothing was started."""
    job = notice.job
    model_id = job.model_id or job.job_id
    if notice.event == "training.not_started" or model_id is None:
        return status_url(notice.webhook_url, "subjects", str(job.subject_id or job.model_id))
    return status_url(notice.webhook_url, "models", model_id)


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
