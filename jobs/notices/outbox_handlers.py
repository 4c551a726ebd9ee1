"""Handlers of outbox messages about a job: deliver its notices and callbacks, clean up after its end."""

import logging

from sqlmodel import Session

from core.clock import utcnow
from core.errors import ImprintError
from core.telemetry import metrics
from core.telemetry.logging import job_context
from core.telemetry.tracing import span
from jobs import service
from jobs.notices import callbacks, notices
from jobs.notices.callbacks import TaskSender
from jobs.remote import polls
from jobs.services import Services
from jobs.stages import stage_runner
from jobs.turns import sending_slot
from notifications import outbox, receivers, retries, webhooks
from notifications.messages import Message
from notifications.retries import Outcome, Verdict
from notifications.tables import TaskCall
from notifications.webhook_payload import FileAddresses, NoticeJob
from storage.tables.jobs import Job

log = logging.getLogger(__name__)

LINK_S = 24 * 3600  # how long the presigned address in a notice is valid


def clean_up(services: Services, job_id: str, message_id: str) -> None:
    """Delete what a final job no longer needs, and mark the message as sent."""
    stage_runner.clean_up(services, job_id)
    polls.clear_job(services, job_id)
    with services.database.writing() as session:
        outbox.mark_sent(session, message_id)


def notify(services: Services, message_id: str) -> None:
    """Try once to deliver a notice; after a failure it is due again by its schedule.

    A notice to a disabled receiver is not sent: it becomes a dead letter. Raises RetryLater if the owner's other work
    takes its share of this worker.
    """
    with services.database.reading() as session:
        message = outbox.find(session, message_id)
        if message is None:
            return
        unwanted = receivers.is_disabled(session, message.owner_id, message.destination)
    with job_context(message.job_id), sending_slot(services, message):
        if unwanted:
            log.warning("webhook %s of job %s is not sent: %s", message_id, message.job_id, receivers.NOT_SENT.error)
            outcome = receivers.NOT_SENT
        else:
            with span("webhook", "client", job_id=message.job_id, event=message.topic):
                outcome = _send_webhook(services, message)
        with services.database.writing() as session:
            _record(session, message, outcome)


def send_callback(services: Services, message_id: str, sender: TaskSender) -> None:
    """Try once to store a result or send a callback; after a failure it is due again soon."""
    with services.database.reading() as session:
        message = outbox.find(session, message_id)
        if message is None or message.job_id is None:
            return
        call = session.get(TaskCall, message.task_id) if message.task_id else None
        on_end = session.get_one(Job, message.job_id).on_end
    view = service.get(services, message.job_id)
    with job_context(message.job_id):
        outcome = callbacks.send(sender, message, view, call, on_end)
        with services.database.writing() as session:
            # False if the application's worker was faster: it has ended the callback already.
            if outcome.verdict is Verdict.SENT and outbox.mark_sent(session, message_id):
                callbacks.expect_end(session, message, call)
            _record(session, message, outcome)


def callback_ended(services: Services, message_id: str) -> None:
    """The application's worker has ended a callback."""
    with services.database.writing() as session:
        callbacks.record_end(session, message_id)


def _send_webhook(services: Services, message: Message) -> Outcome:
    try:
        addresses = file_addresses(services, webhooks.notice_of(message).job)
    except ImprintError as error:  # no credentials for a presigned address, for example
        return retries.next_attempt(error.message, attempts=message.attempts, message_id=message.id, now=utcnow())
    return webhooks.deliver(
        message, services.webhook_guard.send, utcnow(), secrets=services.webhook_secrets, addresses=addresses
    )


def file_addresses(services: Services, job: NoticeJob) -> FileAddresses | None:
    """The addresses of the LoRA file in a notice, if it has one. A presigned one is made again for every attempt."""
    if job.lora is None or job.lora.key is None:
        return None
    key = job.lora.key
    link = services.store.url(key, LINK_S) if job.model_link else None
    return FileAddresses(services.store.uri(key), link)


def _record(session: Session, message: Message, outcome: Outcome) -> None:
    metrics.NOTICES.add(1, outcome.verdict)
    webhooks.record(session, message, outcome)
    if outcome.alert and outcome.verdict in (Verdict.DEAD, Verdict.DISABLED):
        notices.alert_dead_letter(session, message, outcome)
