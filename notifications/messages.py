"""What the outbox holds: messages that wait, and messages that were given up."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from notifications.tables import MESSAGE

Kind = Literal["launch", "notice", "cleanup", "mail", "alert", "callback", "confirmation"]
# Messages that leave Imprint. They are sent in order for each job, and few at a time to each destination.
EXTERNAL: tuple[Kind, ...] = ("notice", "mail", "alert", "callback")
SUPERSEDED = "superseded"  # the error of a message that a later message made needless
# Repeats a callback until the application's worker has ended it. It holds up no other message.
CONFIRMATION: Kind = "confirmation"
# How the error of a message begins that its receiver, which works, did not take: it says nothing about other messages.
DEFERRED = "deferred: "


@dataclass(frozen=True)
class Message:
    """A message as its sender needs it. `attempts` counts the failed ones, `task_id` is of a `TaskCall`."""

    id: str
    kind: Kind
    topic: str
    job_id: str | None
    owner_id: str | None
    destination: str | None
    sequence: int
    payload: dict[str, Any]
    created_at: datetime
    due_at: datetime
    attempts: int
    task_id: str | None = None
    claimed_until: datetime | None = None

    @classmethod
    def from_row(cls, row: sa.Row[Any]) -> "Message":
        """The message in a row of `COLUMNS`."""
        return cls(**row._mapping)


@dataclass(frozen=True)
class DeadLetter:
    """A message that was given up, and the reason."""

    id: str
    kind: str
    topic: str
    job_id: str | None
    owner_id: str | None
    destination: str | None
    sequence: int
    attempts: int
    reason: str
    dead_at: datetime


COLUMNS = [MESSAGE.c[name] for name in Message.__dataclass_fields__]
WAITING = sa.and_(MESSAGE.c.sent_at.is_(None), MESSAGE.c.dead_at.is_(None))
