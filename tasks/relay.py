"""The relay of the outbox: hands the messages that are due to the tasks that deliver them.

It runs right after a commit, in the process's `OutboxSender`, and in the sweep.
"""

import logging
from collections.abc import Sequence

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from core.brokers import queues
from core.clock import utcnow
from core.telemetry.logging import job_context
from core.telemetry.tracing import continue_trace
from jobs.drawings.drawing_transitions import TOPIC as DRAWING
from jobs.results.in_comfyui import TOPIC as COMFYUI
from jobs.services import Services, send_outbox_with
from notifications import outbox
from notifications.messages import CONFIRMATION, EXTERNAL, Message
from storage.database import AWAY
from tasks import pipeline
from tasks.app import app

log = logging.getLogger(__name__)

# What sending raises while the broker or the result store is away. A chord asks the result store before it is sent, and
# Celery gives up asking with a plain RuntimeError.
_AWAY = (OperationalError, RedisError, RuntimeError)
BATCH = 100


def relay(services: Services) -> bool:
    """Hand every due message to its task. Returns whether all of them went.

    Raises nothing while the broker or the database is away: the callers' changes are committed already, and the sweep
    sends what could not be sent now.
    """
    try:
        while True:
            with services.database.writing() as session:
                kinds = ("launch", "cleanup", CONFIRMATION, *EXTERNAL)
                messages = outbox.claim(session, utcnow(), kinds, BATCH, lease=outbox.CLAIM)
            if _hand_on(services, messages) < len(messages):
                return False
            if len(messages) < BATCH:
                return True
    except AWAY as error:
        log.warning("the database does not answer; messages wait for the sweep: %s", error)
        return False


def _hand_on(services: Services, messages: Sequence[Message]) -> int:
    """Send claimed messages in order until one fails, and give up the claim on the rest. Returns how many were sent."""
    sent = 0
    try:
        for message in messages:
            with job_context(message.job_id), continue_trace(message.payload):
                _send(services, message)
            sent += 1
    except _AWAY as error:
        log.warning("the broker does not answer; %d message(s) wait for the sweep: %s", len(messages) - sent, error)
    launched = [message.id for message in messages[:sent] if message.kind == "launch"]
    left = [message.id for message in messages[sent:]]
    if launched or left:  # the tasks of the others record the outcome, and on SQLite would wait for this transaction
        with services.database.writing() as session:
            for message_id in launched:
                outbox.mark_sent(session, message_id)
            outbox.unclaim(session, left)
    return sent


def _send(services: Services, message: Message) -> None:
    if message.kind == "launch" and message.job_id is not None:
        pipeline.launch(services, message.job_id, message.id)
    elif message.kind == "launch" and message.topic == DRAWING:
        queue = queues.DRAW + message.payload["family"]
        app.signature("imprint.draw_pictures", (message.payload["drawing_id"],)).apply_async(queue=queue)
    else:
        app.signature(*_signature(message)).apply_async()


def _signature(message: Message) -> tuple[str, tuple[str | None, ...]]:
    """The task that delivers a message, with its arguments."""
    match message.kind:
        case "notice":
            return "imprint.notify", (message.job_id, message.id)
        case "mail":
            return "imprint.send_mail", (message.id,)
        case "alert":
            return "imprint.send_alerts", (message.id,)
        case "callback" | "confirmation":
            return "imprint.send_callback", (message.id,)
        case "launch" if message.topic == "deletion":
            return "imprint.delete", (message.payload["deletion_id"],)
        case "launch" if message.topic == "screening":
            return "imprint.screen", (message.payload["sha256"],)
        case "launch" if message.topic == "caption":
            return "imprint.ask_caption", (message.payload["job_id"], message.payload["sha256"])
        case "launch" if message.topic == COMFYUI:
            return "imprint.send_to_comfyui", (message.payload["training"],)
        case "launch":  # of pictures at addresses
            return "imprint.fetch_images", (message.payload["fetch_id"],)
        case "cleanup":
            return "imprint.clean_up", (message.job_id, message.id)


def broker_answers() -> bool:
    """Whether messages can be sent now."""
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
    except OperationalError:
        return False
    return True


send_outbox_with(relay)
