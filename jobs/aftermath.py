"""After a change of a job: its notice and its clean-up, each told by a message of the outbox."""

import logging

from core import measures
from core.clock import utcnow
from core.logging import about
from core.tracing import span
from jobs import notices, polls, shell
from jobs.wiring import House
from notifications import outbox, receivers, webhooks
from notifications.outbox import Message
from notifications.retries import Verdict

log = logging.getLogger(__name__)


def clean_up(house: House, job_id: str, message_id: str) -> None:
    """Take away what a final job no longer needs, and note that it is done."""
    shell.clean_up(house, job_id)
    polls.clear_job(house, job_id)
    with house.database.writing() as session:
        outbox.mark_sent(session, message_id)


def notify(house: House, message_id: str) -> None:
    """Make one attempt to deliver a notice; a failed one is due again by its schedule.

    One to a disabled receiver is not sent: it becomes a dead letter.
    """
    with house.database.reading() as session:
        message = outbox.find(session, message_id)
        if message is None:
            return
        unwanted = receivers.is_disabled(session, message.owner_id, message.destination)
    with about(message.job_id):
        _try_to_tell(house, message, unwanted)


def _try_to_tell(house: House, message: Message, unwanted: bool) -> None:
    message_id = message.id
    if unwanted:
        log.warning("webhook %s of job %s is not sent: %s", message_id, message.job_id, receivers.NOT_SENT.error)
        outcome = receivers.NOT_SENT
    else:
        with span("webhook", "client", job_id=message.job_id, event=message.topic):
            outcome = webhooks.deliver(message, house.webhook_guard.send, utcnow(), secrets=house.webhook_secrets)
    measures.NOTICES.add(1, outcome.verdict)
    with house.database.writing() as session:
        webhooks.record(session, message, outcome)
        if outcome.alert and outcome.verdict in (Verdict.DEAD, Verdict.DISABLED):
            notices.alert_letter(session, message, outcome)
