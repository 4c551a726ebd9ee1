"""The workers of this installation and the messages that wait for them, asked over the broker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.remote.trainers import Trainer

_ANSWER_S = 1.5  # how long workers have to answer
UNTRUSTED = (
    "its certificate is not trusted, or is for another name: add ?ssl_ca_certs=/path/ca.pem to IMPRINT_BROKER_URL"
)


@dataclass(frozen=True)
class WorkerState:
    """A worker as it describes itself: the queues that it takes from, and, if it trains, its device."""

    worker: str
    queues: Sequence[str] = ()
    device: str | None = None
    check: str | None = None  # the verdict of the self-check
    refuses: Sequence[str] = ()  # the queues of families that the worker does not train

    @classmethod
    def parse(cls, name: str, reply: Mapping[str, Any]) -> "WorkerState":
        """The state in a worker's reply. Fields that this version does not know are ignored."""
        known = ("queues", "device", "check", "refuses")
        return cls(name, **{field: reply[field] for field in known if field in reply})


@dataclass(frozen=True)
class Fleet:
    """The queues with their workers, the workers with their devices, and why either is unknown."""

    queues: list[Trainer]
    workers: list[WorkerState]
    trouble: str = ""


def broker_address() -> str:
    """The address of the broker, without its password."""
    from tasks.app import app

    with app.connection_for_read() as connection:
        return str(connection.as_uri())


def lengths() -> dict[str, int] | None:
    """How many messages wait in each queue; None if no broker answers."""
    from kombu.exceptions import OperationalError

    from tasks.app import app

    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
            return {name: _waiting(connection, name) for name in sorted(app.amqp.queues)}
    except (OperationalError, OSError):
        return None


def inspect(prefix: str = "") -> Fleet:
    """The queues whose names begin with `prefix`, and the workers that take from them."""
    from kombu.exceptions import OperationalError

    from tasks.app import app

    names = sorted(name for name in app.amqp.queues if name.startswith(prefix))
    waiting: dict[str, int] = {}
    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
            waiting = {name: _waiting(connection, name) for name in names}
            replies = app.control.broadcast("imprint_trains", reply=True, timeout=_ANSWER_S, connection=connection)
    except (OperationalError, OSError) as error:
        return Fleet([Trainer("local", name, "unknown") for name in names], [], _trouble(error))
    states = [WorkerState.parse(name, state) for reply in replies or [] for name, state in reply.items()]
    workers = [state for state in states if set(names) & set(state.queues)]
    return Fleet(
        [_queue(name, waiting[name], [state for state in workers if name in state.queues]) for name in names],
        sorted(workers, key=lambda state: state.worker),
    )


def _trouble(error: Exception) -> str:
    why = UNTRUSTED if "CERTIFICATE_VERIFY_FAILED" in str(error) else type(error).__name__
    return f"No broker answers ({why}), so local workers are unknown. Is a stack running?"


def _queue(name: str, waiting: int, workers: list[WorkerState]) -> Trainer:
    cards = ", ".join(dict.fromkeys(state.device for state in workers if state.device))
    return Trainer("local", name, _health(name, workers), cards or None, waiting)


def _health(name: str, workers: list[WorkerState]) -> str:
    """How many workers take jobs from a queue, and what training workers report about their devices."""
    takes = [state for state in workers if name not in state.refuses]
    text = f"{len(takes)} worker{'s' * (len(takes) != 1)}" if workers else "no worker answers"
    verdicts = dict.fromkeys(state.check for state in workers if state.check)
    return "; ".join([text, *verdicts])


def _waiting(connection: Any, queue: str) -> int:
    """How many messages wait in a queue. A queue that does not exist yet has none."""
    with connection.channel() as channel:
        try:
            return int(channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors:
            return 0
