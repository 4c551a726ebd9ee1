"""The workers of this installation and what waits for them, asked now over the broker."""

from dataclasses import dataclass
from typing import Any

_ANSWER_S = 1.5  # how long workers have to say what they are


@dataclass(frozen=True)
class Fleet:
    """Queues with who works on them, workers with their device; and what keeps us from knowing, in words."""

    queues: list[dict[str, Any]]
    workers: list[dict[str, Any]]
    trouble: str = ""


def broker_address() -> str:
    """Where the broker is, without its password."""
    from tasks.app import app

    with app.connection_for_read() as connection:
        return str(connection.as_uri())


def lengths() -> dict[str, int] | None:
    """How many messages wait in each queue; None where no broker answers."""
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
        trouble = f"No broker answers ({type(error).__name__}): what local workers do is not known. Is a stack running?"
        return Fleet([_queue(name, None, []) | {"health": "not known"} for name in names], [], trouble)
    told = [{"worker": worker, **said} for reply in replies or [] for worker, said in reply.items()]
    workers = [worker for worker in told if set(names) & set(worker.get("queues", []))]
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
    """How many workers take jobs from a queue, and what those that train found out about their devices."""
    takes = [worker for worker in workers if name not in worker.get("refuses", ())]
    text = f"{len(takes)} worker{'s' * (len(takes) != 1)}" if workers else "no worker answers"
    verdicts = dict.fromkeys(str(worker["check"]) for worker in workers if worker.get("check"))
    return "; ".join([text, *verdicts])


def _waiting(connection: Any, queue: str) -> int:
    """Messages that wait in a queue; one that nobody has made yet holds none."""
    with connection.channel() as channel:
        try:
            return int(channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors:
            return 0
