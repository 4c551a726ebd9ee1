"""Owners take turns on a worker that calls addresses of owners."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jobs.services import Services


class RetryLater(Exception):
    """Not now, or a transient failure: run the task again in `delay_s` seconds. `arguments`: if only a part is left."""

    def __init__(self, reason: str, delay_s: float, arguments: Sequence[object] | None = None) -> None:
        super().__init__(reason, delay_s, arguments)
        self.delay_s, self.arguments = delay_s, arguments


@contextmanager
def owner_slot(services: Services, owner_id: str) -> Iterator[None]:
    """Hold a slot of this worker for the owner. Raises RetryLater if the owner has its share of them."""
    if wait_s := services.slots.take(owner_id):
        raise RetryLater("this owner's other work takes its share of the worker", wait_s)
    try:
        yield
    finally:
        services.slots.give_back(owner_id)
