"""The RabbitMQ side of the ingress: its queues, the process that consumes them, and the operators' commands."""

# mypy: disable-error-code="no-untyped-call"
import logging
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amqp.exceptions import MessageNacked
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.message import Message
from kombu.messaging import Consumer, Producer
from kombu.mixins import ConsumerMixin

from core.errors import BackendUnreachable, ImprintError
from core.logging import job_context
from jobs import service
from jobs.notices import notices
from jobs.services import Services
from storage.database import AWAY
from tasks.model_training import MessageRejected, arguments_of

log = logging.getLogger(__name__)

REASON = "x-imprint-reason"  # header of a dead letter: a code, a colon and a sentence
PREFETCH = 20
DELIVERY_LIMIT = 20  # after so many deliveries a message that ends the process becomes a dead letter
_BACK_OFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)  # while the database is away
_ALERT_EVERY_S = 60.0
_CONFIRM_S = 30.0
_LATER = (BackendUnreachable, *AWAY)

_exchange = Exchange("model_training", durable=True)
_dead_exchange = Exchange("model_training.dead", durable=True)
DEAD = Queue(
    "model_training.dead", _dead_exchange, routing_key="model_training", queue_arguments={"x-queue-type": "quorum"}
)
QUEUE = Queue(
    "model_training", _exchange, routing_key="model_training",
    queue_arguments={
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": _dead_exchange.name,
        "x-dead-letter-routing-key": "model_training",
        # Moved safely: a broker that dies in between has the message in one of the two queues.
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    },
)  # fmt: skip


class Ingress(ConsumerMixin):
    """Turns messages into jobs, and acknowledges each message after its job is committed.

    Messages are collected first, and `on_iteration` works on them. While the database is away they stay here
    unacknowledged, and the connection stays alive.
    """

    def __init__(self, services: Services) -> None:
        self.services = services
        self.connection = _connection(services)
        self.accepted = 0
        self.refused: dict[str, int] = {}
        self._waiting: deque[Message] = deque()
        self._failures, self._not_before = 0, 0.0
        self._dead: Producer | None = None
        self._alerted_at = -_ALERT_EVERY_S
        self._unreported = 0

    # ---- called by the mixin ----

    def get_consumers(self, make: Any, channel: Any) -> list[Consumer]:
        """On each new connection: the broker delivers the collected messages again."""
        self._waiting.clear()
        self._dead = Producer(channel.connection.channel())
        DEAD.bind(channel).declare()
        return [make(queues=[QUEUE], on_message=self._waiting.append, prefetch_count=PREFETCH)]

    def on_connection_error(self, exc: Exception, interval: float) -> None:
        log.warning("RabbitMQ does not answer; next attempt in %.0f s (%s)", interval, type(exc).__name__)
        if self.should_stop:
            raise SystemExit(0)

    def on_consume_ready(self, connection: Any, channel: Any, consumers: Any, **kwargs: Any) -> None:
        log.warning("ingress: waiting for messages on %s", QUEUE.name)

    def on_iteration(self) -> None:
        """Work on the collected messages in order, unless the database is away."""
        while self._waiting and not self.should_stop and time.monotonic() >= self._not_before:
            try:
                self._work_on(self._waiting[0])
            except _LATER as error:
                delay_s = _BACK_OFF_S[min(self._failures, len(_BACK_OFF_S) - 1)]
                self._failures, self._not_before = self._failures + 1, time.monotonic() + delay_s
                log.warning("the database does not answer; messages wait (%s)", type(error).__name__)
                return
            self._failures = 0
            self._waiting.popleft()
        if not self._waiting:
            self._alert()

    # ---- one message ----

    def _work_on(self, message: Message) -> None:
        """Turn a message into a job or a dead letter. Raises temporary errors; the broker then delivers it again."""
        try:
            arguments = arguments_of(_bytes(message.body), message.properties.get("message_id"), self.services.settings)
            view = service.submit(self.services, arguments)
        except MessageRejected as refused:
            self._dead_letter(message, refused)
        except ImprintError as error:
            if error.retryable:
                raise BackendUnreachable(error.message) from error
            self._dead_letter(message, MessageRejected(error.code, error.message))
        else:
            message.ack()
            self.accepted += 1
            with job_context(view.job_id):
                log.info("accepted %s", view.job_id)

    def _dead_letter(self, message: Message, reason: MessageRejected) -> None:
        """Publish it as a dead letter, and acknowledge it only after the broker has confirmed that."""
        assert self._dead is not None  # noqa: S101 - a message came over a connection
        _send(self._dead, message, _dead_exchange, {**_plain_headers(message), REASON: str(reason)})
        message.ack()
        self.refused[reason.code] = self.refused.get(reason.code, 0) + 1
        self._unreported += 1
        log.warning("refused a message, %d so far: %s", sum(self.refused.values()), reason)

    def _alert(self) -> None:
        if not self._unreported or time.monotonic() - self._alerted_at < _ALERT_EVERY_S:
            return
        counts = ", ".join(f"{count} {code}" for code, count in sorted(self.refused.items()))
        try:
            notices.alert(
                self.services, "ingress", f"{self._unreported} message(s) of {QUEUE.name} refused; in total: {counts}"
            )
        except AWAY:
            return
        self._unreported, self._alerted_at = 0, time.monotonic()

    # ---- the process ----

    def serve(self) -> None:
        """Run until SIGTERM or SIGINT. The current message is finished, and the collected ones return to the queue."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "should_stop", True))
        while not self.should_stop:
            try:
                self.run()
            except (MessageNacked, TimeoutError) as error:
                log.warning(
                    "RabbitMQ did not accept a dead letter; the message will be delivered again (%s)",
                    type(error).__name__,
                )
        log.warning("ingress: stopped after %d accepted, %d refused", self.accepted, sum(self.refused.values()))


# ---- for operators --------------------------------------------------------------------------------------------


def lengths(services: Services) -> dict[str, int]:
    """How many messages wait, how many are dead letters, and how many consumers there are.

    Raises BackendUnreachable.
    """
    with _talking(services) as connection:
        channel = connection.default_channel
        for queue in (DEAD, QUEUE):
            queue.bind(channel).declare()
        waiting, dead = (channel.queue_declare(queue.name, passive=True) for queue in (QUEUE, DEAD))
        return {
            "waiting": waiting.message_count,
            "dead": dead.message_count,
            "consumers": waiting.consumer_count,
        }


def replay(services: Services, limit: int | None, reason: str | None) -> dict[str, int]:
    """Put dead letters back into the queue, oldest first; with `reason`, only those with this code.

    Each is published before it is removed. If a crash leaves a message in both queues, it is still one job. Raises
    BackendUnreachable.
    """
    moved = kept = 0
    with _talking(services) as connection:
        channel = connection.default_channel
        for queue in (DEAD, QUEUE):
            queue.bind(channel).declare()
        producer = Producer(connection.channel())
        dead = DEAD.bind(channel)
        for _ in range(channel.queue_declare(DEAD.name, passive=True).message_count):
            if limit is not None and moved >= limit:
                break
            message = dead.get(no_ack=False)
            if message is None:
                break
            if reason is None or code_of(message) == reason:
                _send(producer, message, _exchange, _plain_headers(message))
                moved += 1
            else:
                # To the end of the same queue: returning it to the head would count as a failed delivery.
                _send(producer, message, _dead_exchange, {**_plain_headers(message), **_reason(message)})
                kept += 1
            message.ack()
    return {"replayed": moved, "kept": kept}


def code_of(message: Message) -> str:
    """The code of a dead letter; `delivery_limit` if the broker made it one."""
    return str(message.headers.get(REASON, "delivery_limit")).partition(":")[0]


def _reason(message: Message) -> dict[str, str]:
    return {REASON: str(message.headers[REASON])} if REASON in message.headers else {}


def _connection(services: Services) -> Connection:
    url = services.settings.ingress_url
    if url is None:
        raise BackendUnreachable("no ingress is configured: set IMPRINT_INGRESS_URL to a RabbitMQ address")
    return Connection(url.get_secret_value(), heartbeat=30, transport_options={"confirm_publish": True})


@contextmanager
def _talking(services: Services) -> Iterator[Connection]:
    with _connection(services) as connection:
        try:
            connection.ensure_connection(max_retries=1, timeout=5)
            yield connection
        except (OperationalError, MessageNacked, *connection.connection_errors) as error:
            raise BackendUnreachable(f"RabbitMQ does not answer ({type(error).__name__})") from error
        except connection.channel_errors as error:
            raise BackendUnreachable(f"RabbitMQ refused the command ({type(error).__name__})") from error


def _send(producer: Producer, message: Message, exchange: Exchange, headers: dict[str, Any]) -> None:
    """Publish the same message with these headers. Returns after the broker has confirmed it."""
    kept = ("message_id", "correlation_id", "reply_to", "type", "app_id", "timestamp", "priority")
    producer.publish(
        _bytes(message.body),
        exchange=exchange,
        routing_key="model_training",
        headers=headers,
        content_type=message.content_type or "application/json",
        content_encoding=message.content_encoding or "utf-8",
        serializer=None,
        delivery_mode=2,
        mandatory=True,
        confirm_timeout=_CONFIRM_S,
        **{name: message.properties[name] for name in kept if message.properties.get(name) is not None},
    )


def _plain_headers(message: Message) -> dict[str, Any]:
    """The producer's headers, without ours and the broker's."""
    return {
        name: value
        for name, value in message.headers.items()
        if not name.startswith(("x-death", "x-first-", "x-last-", "x-delivery-count", REASON))
    }


def _bytes(body: Any) -> bytes:
    return body.encode() if isinstance(body, str) else bytes(body)
