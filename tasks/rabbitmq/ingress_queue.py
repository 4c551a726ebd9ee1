"""The RabbitMQ side of the ingress: the process that consumes its queue, and the operators' commands."""

# mypy: disable-error-code="no-untyped-call"
import logging
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amqp.exceptions import ChannelError, MessageNacked
from kombu.connection import Connection
from kombu.exceptions import OperationalError
from kombu.message import Message
from kombu.messaging import Consumer, Producer
from kombu.mixins import ConsumerMixin

from core.brokers.protocol import check_tls
from core.errors import BackendUnreachable, ImprintError, SpecInvalid
from core.telemetry.logging import job_context
from jobs import service
from jobs.notices import notices
from jobs.notices.refusals import queue_refused_notice
from jobs.services import Services
from notifications.webhook_payload import NoticeFailure
from storage.database import AWAY
from storage.tables import stream_positions
from tasks.rabbitmq.message_queues import (
    OFFSET,
    REASON,
    body_of,
    code_of,
    is_stream,
    open_queues,
    plain_headers,
    queues_of,
    reason_header,
    send,
)
from tasks.rabbitmq.model_training import MessageRejected, TrainingMessage, in_message_terms, parse_message

log = logging.getLogger(__name__)

PREFETCH = 20
_BACK_OFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)  # while the database is away
_ALERT_EVERY_S = 60.0
_REMEMBERED = 1000
_LATER = (BackendUnreachable, *AWAY)


class Ingress(ConsumerMixin):
    """Turns messages into jobs, and acknowledges each message after its job is committed.

    Messages are collected first, and `on_iteration` works on them. While the database is away they stay here
    unacknowledged, and the connection stays alive.
    """

    def __init__(self, services: Services) -> None:
        self.services = services
        self.queues = queues_of(services.settings)
        self.connection = _connection(services)
        self.accepted = 0
        self.refused: dict[str, int] = {}
        self._waiting: deque[Message] = deque()
        self._failures, self._not_before = 0, 0.0
        self._dead: Producer | None = None
        self._notified: deque[str] = deque(maxlen=_REMEMBERED)
        self._alerted_at = -_ALERT_EVERY_S
        self._unreported = 0

    # ---- called by the mixin ----

    def get_consumers(self, make: Any, channel: Any) -> list[Consumer]:
        """On each new connection: the broker delivers the collected messages again."""
        self._waiting.clear()
        new_channel = channel.connection.channel
        open_queues(self.queues, new_channel)
        self._dead = Producer(new_channel(), auto_declare=False)
        queue: Any = self.queues.main
        if is_stream(queue, new_channel):
            with self.services.database.reading() as session:
                offset = stream_positions.next_offset(session, queue.name)
            queue = queue(channel)  # a copy
            queue.consumer_arguments = {OFFSET: "first" if offset is None else offset}
        consumer: Consumer = make(
            queues=[queue], on_message=self._waiting.append, prefetch_count=PREFETCH, auto_declare=False
        )
        return [consumer]

    def on_connection_error(self, exc: Exception, interval: float) -> None:
        log.warning("RabbitMQ does not answer; next attempt in %.0f s (%s)", interval, type(exc).__name__)
        if self.should_stop:
            raise SystemExit(0)

    def on_consume_ready(self, connection: Any, channel: Any, consumers: Any, **kwargs: Any) -> None:
        log.info("ingress: waiting for messages on %s", self.queues.main.name)

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
        parsed: TrainingMessage | None = None
        try:
            parsed = parse_message(body_of(message), message.properties.get("message_id"), self.services.settings)
            parsed.check(self.services.settings, self.services.sources)
            view = service.submit(self.services, parsed.arguments, parsed.origin)
        except MessageRejected as refused:
            self._refuse(message, parsed, refused)
        except ImprintError as error:
            if error.retryable:
                raise BackendUnreachable(error.message) from error
            self._refuse(message, parsed, _in_message_terms(error))
        else:
            self._finish(message)
            self.accepted += 1
            with job_context(view.job_id):
                log.info("accepted %s", view.job_id)

    def _refuse(self, message: Message, parsed: TrainingMessage | None, reason: MessageRejected) -> None:
        """Notify the producer, publish a dead letter, and acknowledge the message only after both are safe."""
        assert self._dead is not None  # noqa: S101 - a message came over a connection
        if parsed is not None:
            self._notify(parsed, reason)
        send(self._dead, message, self.queues.dead, {**plain_headers(message), REASON: str(reason)})
        self._finish(message)
        self.refused[reason.code] = self.refused.get(reason.code, 0) + 1
        self._unreported += 1
        log.warning("refused a message, %d so far: %s", sum(self.refused.values()), reason)

    def _finish(self, message: Message) -> None:
        """Acknowledge a message. A stream would deliver it again to the next reader, so the position is kept too."""
        if OFFSET in message.headers:
            with self.services.database.writing() as session:
                stream_positions.keep(session, self.queues.main.name, message.headers[OFFSET] + 1)
        message.ack()

    def _notify(self, parsed: TrainingMessage, reason: MessageRejected) -> None:
        key = parsed.arguments["idempotency_key"]
        if key in self._notified:  # delivered again, because RabbitMQ did not confirm its dead letter
            return
        details = {"faults": reason.faults}
        failure = NoticeFailure(code=reason.code, message=reason.full_sentence, details=details)
        queue_refused_notice(self.services, parsed.arguments, parsed.origin, failure)
        self._notified.append(key)

    def _alert(self) -> None:
        if not self._unreported or time.monotonic() - self._alerted_at < _ALERT_EVERY_S:
            return
        counts = ", ".join(f"{count} {code}" for code, count in sorted(self.refused.items()))
        name = self.queues.main.name
        try:
            notices.alert(
                self.services, "ingress", f"{self._unreported} message(s) of {name} refused; in total: {counts}"
            )
        except AWAY:
            return
        self._unreported, self._alerted_at = 0, time.monotonic()

    # ---- the process ----

    def serve(self) -> None:
        """Run until SIGTERM or SIGINT. The current message is finished, and the collected ones return to the queue.

        Raises BackendUnreachable if RabbitMQ refuses the queue.
        """
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
            except ChannelError as error:
                raise _queue_refused(error) from error
            except AWAY as error:  # at the start of a stream
                log.warning("the database does not answer; the position is read again (%s)", type(error).__name__)
                time.sleep(_BACK_OFF_S[1])
        log.info("ingress: stopped after %d accepted, %d refused", self.accepted, sum(self.refused.values()))


def _in_message_terms(error: ImprintError) -> MessageRejected:
    if not isinstance(error, SpecInvalid) or not error.faults:
        return MessageRejected(error.code, error.message)
    faults = in_message_terms(error.faults)
    return MessageRejected(error.code, "; ".join(f"{name}: {fault}" for name, fault in faults.items()), faults)


# ---- for operators --------------------------------------------------------------------------------------------


def lengths(services: Services) -> dict[str, int]:
    """How many messages wait, how many are dead letters, and how many consumers there are.

    Raises BackendUnreachable.
    """
    queues = queues_of(services.settings)
    with _talking(services) as connection:
        open_queues(queues, connection.channel)
        channel = connection.default_channel
        waiting, dead = (channel.queue_declare(queue.name, passive=True) for queue in (queues.main, queues.dead))
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
    queues = queues_of(services.settings)
    with _talking(services) as connection:
        open_queues(queues, connection.channel)
        channel = connection.default_channel
        producer = Producer(connection.channel(), auto_declare=False)
        dead = queues.dead.bind(channel)
        for _ in range(channel.queue_declare(dead.name, passive=True).message_count):
            if limit is not None and moved >= limit:
                break
            message = dead.get(no_ack=False)
            if message is None:
                break
            if reason is None or code_of(message) == reason:
                send(producer, message, queues.main, plain_headers(message))
                moved += 1
            else:
                # To the end of the same queue: returning it to the head would count as a failed delivery.
                send(producer, message, queues.dead, {**plain_headers(message), **reason_header(message)})
                kept += 1
            message.ack()
    return {"replayed": moved, "kept": kept}


def _connection(services: Services) -> Connection:
    url = services.settings.ingress_url
    if url is None:
        raise BackendUnreachable("no ingress is configured: set IMPRINT_INGRESS_URL to a RabbitMQ address")
    try:
        check_tls("IMPRINT_INGRESS_URL", url.get_secret_value())
    except ValueError as error:
        raise BackendUnreachable(str(error)) from None
    return Connection(url.get_secret_value(), heartbeat=30, transport_options={"confirm_publish": True})


@contextmanager
def _talking(services: Services) -> Iterator[Connection]:
    with _connection(services) as connection:
        try:
            connection.ensure_connection(max_retries=1, timeout=5)
            yield connection
        except ChannelError as error:
            raise _queue_refused(error) from error
        except (OperationalError, MessageNacked, *connection.connection_errors) as error:
            raise BackendUnreachable(f"RabbitMQ does not answer ({type(error).__name__})") from error
        except connection.channel_errors as error:
            raise BackendUnreachable(f"RabbitMQ refused the command ({type(error).__name__})") from error


def _queue_refused(error: ChannelError) -> BackendUnreachable:
    return BackendUnreachable(f"RabbitMQ refused the command: {str(error.reply_text)[:300]}")
