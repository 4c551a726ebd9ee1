"""A consumer that survives the loss of its broker, and messages that are made to end the worker."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from amqp.exceptions import NotFound
from celery.utils.time import maybe_iso8601, maybe_make_aware
from celery.worker.consumer import Consumer
from celery.worker.consumer import consumer as upstream
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.transport import virtual
from kombu.transport.redis import Channel as RedisChannel
from kombu.transport.redis import QoS as RedisQoS
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.exceptions import ResponseError

from core.clock import utcnow
from tasks.arguments import LONGEST_DELAY_S, OWN_DELAY, REFUSED_DELAY

log = logging.getLogger(__name__)

# What kombu and Celery may raise on a hostile message.
_FAULTS = (
    ContentDisallowed, DecodeError, TypeError, ValueError, LookupError, AttributeError, RecursionError, OverflowError
)  # fmt: skip


# Of a Redis that cannot write, and of a RabbitMQ whose node with the queue is down.
_REFUSALS = (ResponseError, NotFound)
_MAX_DEPTH = 20
_REFUSED_S = 1.0
_LONGEST_GAP_S = 60.0  # an operator may send the hourly audit once more


class _Headers(BaseModel):
    """The headers that Celery 5.7.0 does not check: one of another type ends the worker."""

    model_config = ConfigDict(extra="allow", strict=True)

    task: str = Field(min_length=1, max_length=200)
    id: str = Field(pattern=r"^[\w.:-]{1,155}$")
    root_id: str | None = Field(None, max_length=200)
    parent_id: str | None = Field(None, max_length=200)
    group: str | None = Field(None, max_length=200)
    eta: str | None = Field(None, max_length=100)
    expires: str | float | None = None
    retries: int | None = Field(None, ge=0, le=10**6)
    timelimit: list[float | None] | None = Field(None, min_length=2, max_length=2)
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    ignore_result: bool | None = None


class SteadyConsumer(Consumer):  # type: ignore[misc]
    """Celery 5.7.0's consumer without two of its defects.

    After a lost connection, 5.7.0 closes the connection twice. The second close uses a transport client that is gone,
    and the worker ends with exit code 1. Here the second close does nothing, as in 5.6. Remove this when
    `tests/faults/test_broker_outage.py` passes without it.

    A message whose body is `5`, or that has no id, ends the worker. It is not acknowledged, so it comes back and ends
    the next worker. Here it is checked first, and dropped. `tests/hostile/test_messages.py` fails without this.

    A Redis that is full, read-only or cannot write to its disk refuses to note a message that the worker has taken, and
    that ends the worker. So does a RabbitMQ cluster without the node that has the worker's queues. Here the worker
    connects again, until Redis has room and the node is back; `tests/faults/test_full_redis.py` and the cluster in
    `tests/integration/test_brokers.py` fail without this.

    And it compares no times of two machines: each may have a clock of its own.
    """

    _periodic: "_PeriodicTasks | None" = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refusals = tuple(each for each in _REFUSALS if issubclass(each, self.channel_errors))
        self.connection_errors: tuple[type[Exception], ...] = (*self.conninfo.connection_errors, *refusals)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        if isinstance(exc, _REFUSALS):
            time.sleep(_REFUSED_S)  # it is not away, so the next attempt would be at once
        if self.connection is not None:
            self.connection.close = lambda: None
        super().on_connection_error_after_connected(exc)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        take_in = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            try:
                _check(message)
                if self._is_backlog(message):
                    message.ack_log_error(log, self.connection_errors)
                    return
                self._refuse_long_delay(message)
                _limit_own_delay(message)
                take_in(message)
            except _FAULTS as fault:
                # Not the error's text, which quotes the message: it may contain addresses and keys.
                log.warning("dropped a message that is not one of our tasks (%s)", type(fault).__name__)
                message.reject_log_error(log, self.connection_errors)

        return on_task_received

    def _is_backlog(self, message: Any) -> bool:
        """Whether this is one of many runs of a periodic task that waited while no worker took them."""
        self._periodic = self._periodic or _PeriodicTasks(self.app.conf.beat_schedule)
        return self._periodic.is_too_soon(message.headers["task"], time.monotonic())

    def _refuse_long_delay(self, message: Any) -> None:
        """Let a task with a long countdown run at once, so that it refuses the delay (`CheckedTask`).

        A worker would keep the message until then, unacknowledged. After the visibility timeout, Redis would send it to
        another worker too.
        """
        headers = message.headers
        if not headers.get("eta") or headers.get("retries") or not headers["task"].startswith("imprint."):
            return  # a worker sends its own retries a few seconds ahead
        delay_s = (maybe_make_aware(maybe_iso8601(headers["eta"])) - utcnow()).total_seconds()
        if delay_s > LONGEST_DELAY_S:
            headers |= {"eta": None, REFUSED_DELAY: round(delay_s)}


class _SteadyQoS(RedisQoS):
    """kombu's count of the messages that a worker has, for a Redis that refuses to forget one of them.

    kombu would count that message for ever. A worker with one process would never take another one, and say nothing.
    Redis gives the message to a worker again after the visibility timeout.
    """

    def ack(self, delivery_tag: str) -> None:
        with self._freed(delivery_tag):
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        with self._freed(delivery_tag):
            super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]

    @contextmanager
    def _freed(self, delivery_tag: str) -> Iterator[None]:
        try:
            yield
        except ResponseError:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]
            raise


RedisChannel.QoS = _SteadyQoS


class _PeriodicTasks:
    """When this worker last took each task that beat sends.

    A backlog is told by this worker's own clock. An `expires` is a time of beat's clock, and a worker on a machine
    whose clock is ahead would drop every sweep.
    """

    def __init__(self, schedule: Mapping[str, Mapping[str, Any]]) -> None:
        self._shortest_s = {
            entry["task"]: min(float(entry["schedule"]) / 2, _LONGEST_GAP_S) for entry in schedule.values()
        }
        self._taken: dict[str, float] = {}

    def is_too_soon(self, task: str, now: float) -> bool:
        """Whether `task` is periodic and was taken less than half a period ago; if not, it is taken now."""
        if task not in self._shortest_s:
            return False
        if task in self._taken and now - self._taken[task] < self._shortest_s[task]:
            return True
        self._taken[task] = now
        return False


def _limit_own_delay(message: Any) -> None:
    """Let a task that a worker of ours sent again wait at most its delay: the sender's clock may be ahead of ours."""
    delay_s = message.headers.get(OWN_DELAY)
    if not message.headers.get("eta") or type(delay_s) not in (int, float) or not 0 <= delay_s <= LONGEST_DELAY_S:
        return
    latest = utcnow() + timedelta(seconds=delay_s)
    if maybe_make_aware(maybe_iso8601(message.headers["eta"])) > latest:
        message.headers["eta"] = latest.isoformat()


def _check(message: Any) -> None:
    """Raises one of _FAULTS for a message that Celery cannot handle."""
    try:
        _Headers.model_validate(message.headers)
    except ValidationError as error:
        raise ValueError("headers") from error
    args, kwargs, embed = message.payload  # decoded only once: Celery uses it next
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(embed, dict):
        raise TypeError("body")
    if not all(isinstance(embed.get(name), list | None) for name in ("chain", "callbacks", "errbacks")):
        raise TypeError("what follows")
    if not isinstance(embed.get("chord"), dict | None):
        raise TypeError("what follows")
    level, depth = [args, kwargs, embed], 0
    while level:
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)
                 if isinstance(inner, dict | list)]  # fmt: skip
        depth += 1
        if depth > _MAX_DEPTH:
            raise RecursionError("body")  # Celery would detect it while it holds a process of the pool, and lose that


class _RedactingFilter(logging.Filter):
    """Celery logs dropped messages with body and headers. Log only that a message was dropped."""

    _MESSAGES = (
        upstream.UNKNOWN_FORMAT, upstream.UNKNOWN_TASK_ERROR, upstream.INVALID_TASK_ERROR, upstream.MESSAGE_DECODE_ERROR
    )  # fmt: skip

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg in self._MESSAGES:
            record.msg, record.args = "dropped a message: %s", (str(record.msg).strip().partition("\n")[0][:40],)
            record.exc_info = record.exc_text = None
        return True


logging.getLogger(upstream.__name__).addFilter(_RedactingFilter())
