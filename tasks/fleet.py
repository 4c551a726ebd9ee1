"""The workers of this installation and the messages that wait for them, asked over the broker."""

from dataclasses import dataclass
from typing import Any

_ANSWER_S = 1.5  # how long workers have to answer


@dataclass(frozen=True)
class Fleet:
    """The queues with their workers, the workers with their devices, and why either is unknown."""

    queues: list[dict[str, Any]]
    workers: list[dict[str, Any]]
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
        trouble = f"No broker answers ({type(error).__name__}), so local workers are unknown. Is a stack running?"
        return Fleet([_queue(name, None, []) | {"health": "unknown"} for name in names], [], trouble)
    answers = [{"worker": worker, **report} for reply in replies or [] for worker, report in reply.items()]
    workers = [worker for worker in answers if set(names) & set(worker.get("queues", []))]
    of_queue = {name: [worker for worker in workers if name in worker["queues"]] for name in names}
    return Fleet(
        [_queue(name, waiting[name], of_queue[name]) for name in names],
        sorted(workers, key=lambda worker: str(worker["worker"])),
    )


def _queue(name: str, waiting: int | None, workers: list[dict[str, Any]]) -> dict[str, Any]:
    cards = list(dict.fromkeys(str(worker["device"]) for worker in workers if worker.get("device")))
    return {
        "backend": "local",
        "name": name,
        "health": _health(name, workers),
        "gpu": ", ".join(cards) or None,
        "queue": waiting,
        "dollars_per_hour": None,
    }


def _health(name: str, workers: list[dict[str, Any]]) -> str:
    """How many workers take jobs from a queue, and what training workers report about their devices."""
    takes = [worker for worker in workers if name not in worker.get("refuses", ())]
    text = f"{len(takes)} worker{'s' * (len(takes) != 1)}" if workers else "no worker answers"
    verdicts = dict.fromkeys(str(worker["check"]) for worker in workers if worker.get("check"))
    return "; ".join([text, *verdicts])


def _waiting(connection: Any, queue: str) -> int:
    """How many messages wait in a queue. A queue that does not exist yet has none."""
    with connection.channel() as channel:
        try:
            return int(channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors:
            return 0
