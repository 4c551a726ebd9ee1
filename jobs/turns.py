"""Owners take turns on a worker that calls addresses of owners."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta

from core.clock import utcnow
from jobs.services import Services
from notifications import outbox
from notifications.messages import Message


class RetryLater(Exception):
    """Not now, or a transient failure: run the task again in `delay_s` seconds. `arguments`: if only a part is left."""

    def __init__(self, reason: str, delay_s: float, arguments: Sequence[object] | None = None) -> None:
        super().__init__(reason, delay_s, arguments)
        self.delay_s, self.arguments = delay_s, arguments


@contextmanager
def owner_slot(
    services: Services, owner_id: str, postpone: Callable[[datetime], None] = lambda _: None
) -> Iterator[None]:
    """Hold a slot of this worker for the owner. Raises RetryLater if the owner has its share of them.

    `postpone` is told when the work comes back, so that nobody takes it for lost until then.
    """
    if wait_s := services.slots.take(owner_id):
        postpone(utcnow() + timedelta(seconds=wait_s))
        raise RetryLater("this owner's other work takes its share of the worker", wait_s)
    try:
        yield
    finally:
        services.slots.give_back(owner_id)


def sending_slot(services: Services, message: Message) -> AbstractContextManager[None]:
    """An `owner_slot` for sending a message of the outbox. While the message waits for one, no relay sends it again."""

    def postpone(comes_back: datetime) -> None:
        if message.claimed_until is None or message.claimed_until < comes_back + outbox.CLAIM / 2:
            with services.database.writing() as session:
                outbox.keep_claimed(session, message.id, comes_back + outbox.CLAIM)

    return owner_slot(services, message.owner_id or "", postpone)
