"""Asks for a decision at the end of a transaction, and collects what owners have used until then."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlmodel import Session

from storage.database import Database

# In the info of a session whose transaction may let a job start.
DUE = "imprint_admission"
_OPEN_S = 1.0


@dataclass
class Due:
    """What the transaction changed: queues that may have room, seconds used by owner, and jobs that it accepted.

    opened: whether many places may be free. is_full: after the decisions, whether it admitted as many jobs as it may.
    """

    queues: set[str] = field(default_factory=set)
    used: dict[str, float] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    opened: bool = False
    is_full: bool = False


def ask(session: Session, queue: str) -> None:
    """Have the next jobs of a queue admitted at the end of this transaction."""
    if queue:
        _of(session).queues.add(queue)


def open_places(database: Database, queues: Iterable[str]) -> None:
    """Admit jobs where many places may be free: in short transactions, so that no request waits long for a lock.

    After a second, the rest is left to the next sweep, and to the jobs that end.
    """
    until = time.monotonic() + _OPEN_S
    has_more = True
    while has_more:
        with database.writing() as session:
            found = _of(session)
            found.queues |= set(queues)
            found.opened = True
        has_more = found.is_full and time.monotonic() < until


def accept(session: Session, job_id: str, queue: str) -> None:
    """The same for a job that this transaction accepts."""
    _of(session).accepted.add(job_id)
    ask(session, queue)


def add_used(session: Session, owner_id: str, seconds: float) -> None:
    """Count slot seconds as used by an owner."""
    used = _of(session).used
    used[owner_id] = used.get(owner_id, 0.0) + max(seconds, 0.0)


def _of(session: Session) -> Due:
    found: Due = session.info.setdefault(DUE, Due())
    return found
