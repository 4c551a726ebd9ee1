"""What the broker must be like: classic queues on RabbitMQ, and a Redis that keeps its messages."""

from typing import Any

from amqp.exceptions import NotFound
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

_PRECONDITION_FAILED = 406
_ANSWER_S = 3


def check_queue_types(app: Celery) -> None:
    """Raises ValueError if one of our queues is a quorum queue. A broker or node that is away is not checked.

    Quorum queues know no prefetch count for a whole channel, with which a worker makes room for tasks that wait for
    their time. Imprint needs no replicated queues: the database has every job, and the sweeps send lost messages again.
    """
    try:
        with app.connection_for_write() as connection:
            if connection.transport.driver_type != "amqp":
                return
            connection.ensure_connection(max_retries=1, timeout=_ANSWER_S)
            for queue in app.amqp.queues.values():
                if not _is_classic(connection, queue):
                    raise ValueError(
                        f"the queue {queue.name} on the broker is not a plain classic queue (Imprint takes no quorum "
                        "queues): delete it, or set IMPRINT_BROKER_URL to a virtual host whose default queue type is "
                        "classic"
                    )
    except (OperationalError, OSError, NotFound):
        return  # the worker waits for the broker, or for its node with the queue, as ever


def eviction_policy(app: Celery) -> str | None:
    """Why Redis may throw messages away, as a sentence; None if it does not, or is away, or does not say.

    Keys with an end, which `volatile-…` policies evict, are results only.
    """
    try:
        with app.connection_for_read() as connection:
            if connection.transport.driver_type != "redis":
                return None
            connection.ensure_connection(max_retries=1, timeout=_ANSWER_S)
            policy = str(connection.default_channel.client.info("memory").get("maxmemory_policy", ""))
    except (OperationalError, OSError, RedisError):
        return None
    if not policy.startswith("allkeys-"):
        return None
    return f"Redis may evict messages (maxmemory-policy {policy}): set maxmemory-policy noeviction"


def _is_classic(connection: Any, queue: Any) -> bool:
    """Whether a queue can be declared as a worker does next, and then not with another type."""
    try:
        with connection.channel() as channel:
            queue(channel).declare()
    except connection.channel_errors as error:
        if getattr(error, "reply_code", None) == _PRECONDITION_FAILED:
            return False
        raise
    try:
        with connection.channel() as channel:
            channel.queue_declare(queue.name, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
    except connection.channel_errors as error:
        if getattr(error, "reply_code", None) == _PRECONDITION_FAILED:
            return True
        raise
    return False
