"""The queues of the ingress on RabbitMQ: its messages, and those that were refused."""

# mypy: disable-error-code="no-untyped-call"
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amqp.exceptions import ChannelError, NotFound, PreconditionFailed
from kombu.entity import Exchange, Queue
from kombu.message import Message
from kombu.messaging import Producer

from core.settings import Settings

log = logging.getLogger(__name__)

REASON = "x-imprint-reason"  # header of a dead letter: a code, a colon and a sentence
OFFSET = "x-stream-offset"  # of a stream: argument of a consumer, and header of each message
DELIVERY_LIMIT = 20  # after so many deliveries a message that ends the process becomes a dead letter
_CONFIRM_S = 30.0
_KEPT = ("message_id", "correlation_id", "reply_to", "type", "app_id", "timestamp", "priority")


@dataclass(frozen=True)
class MessageQueues:
    """The queue that is consumed, and the one of dead letters."""

    main: Queue
    dead: Queue


def queues_of(settings: Settings) -> MessageQueues:
    """The queues as the ingress declares them if they do not exist. Their exchanges have the same names."""
    name = settings.ingress_queue
    dead_exchange = Exchange(f"{name}.dead", durable=True)
    dead = Queue(f"{name}.dead", dead_exchange, routing_key=name, queue_arguments={"x-queue-type": "quorum"})
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": dead_exchange.name,
        "x-dead-letter-routing-key": name,
        # Moved safely: a broker that dies in between has the message in one of the two queues.
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    return MessageQueues(Queue(name, Exchange(name, durable=True), routing_key=name, queue_arguments=arguments), dead)


def open_queues(queues: MessageQueues, new_channel: Callable[[], Any]) -> None:
    """Declare the queues that do not exist. One that exists stays as it is, whatever its type and arguments.

    Raises amqp's ChannelError if RabbitMQ refuses the access.
    """
    for queue in (queues.dead, queues.main):
        if not _exists(queue, new_channel):
            try:
                with new_channel() as channel:
                    queue.bind(channel).declare()
            except PreconditionFailed:  # a producer has declared it with other arguments at the same moment
                _exists(queue, new_channel)


def _exists(queue: Queue, new_channel: Callable[[], Any]) -> bool:
    """Whether the queue exists. If so, its exchange leads to it too, unless RabbitMQ or the exchange forbids that."""
    try:
        with new_channel() as channel:  # an error closes the channel
            channel.queue_declare(queue.name, passive=True)
    except NotFound:
        return False
    try:
        with new_channel() as channel:
            bound = queue.bind(channel)
            bound.exchange.declare()
            bound.queue_bind()
    except ChannelError as error:
        log.info("%s is not bound to the exchange of the same name: %s", queue.name, error.reply_text)
    return True


def is_stream(queue: Queue, new_channel: Callable[[], Any]) -> bool:
    """Whether an existing queue is a stream: only a stream takes a consumer that names an offset."""
    try:
        with new_channel() as channel:
            channel.basic_qos(0, 1, False)
            channel.basic_consume(queue.name, arguments={OFFSET: "next"}, callback=lambda _: None)
    except PreconditionFailed:
        return False
    return True


def send(producer: Producer, message: Message, queue: Queue, headers: dict[str, Any]) -> None:
    """Put the same message with these headers into a queue. Returns after the broker has confirmed it."""
    producer.publish(
        body_of(message),
        exchange="",  # leads to every queue by its name
        routing_key=queue.name,
        headers=headers,
        content_type=message.content_type or "application/json",
        content_encoding=message.content_encoding or "utf-8",
        serializer=None,
        delivery_mode=2,
        mandatory=True,
        confirm_timeout=_CONFIRM_S,
        **{name: message.properties[name] for name in _KEPT if message.properties.get(name) is not None},
    )


def code_of(message: Message) -> str:
    """The code of a dead letter; `delivery_limit` if the broker made it one."""
    return str(message.headers.get(REASON, "delivery_limit")).partition(":")[0]


def reason_header(message: Message) -> dict[str, str]:
    """The header of a dead letter that says why it is one."""
    return {REASON: str(message.headers[REASON])} if REASON in message.headers else {}


def plain_headers(message: Message) -> dict[str, Any]:
    """The producer's headers, without ours and the broker's."""
    return {
        name: value
        for name, value in message.headers.items()
        if not name.startswith(("x-death", "x-first-", "x-last-", "x-delivery-count", OFFSET, REASON))
    }


def body_of(message: Message) -> bytes:
    """The body as bytes, whatever its content type."""
    return message.body.encode() if isinstance(message.body, str) else bytes(message.body)
