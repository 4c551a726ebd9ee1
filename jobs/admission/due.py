"""Asks for a decision at the end of a transaction, and collects what owners have used until then."""

from dataclasses import dataclass, field

from sqlmodel import Session

# In the info of a session whose transaction may let a job start.
DUE = "imprint_admission"


@dataclass
class Due:
    """What the transaction changed: queues that may have room, seconds used by owner, and jobs that it accepted."""

    queues: set[str] = field(default_factory=set)
    used: dict[str, float] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)


def ask(session: Session, queue: str) -> None:
    """Have the next jobs of a queue admitted at the end of this transaction."""
    if queue:
        _of(session).queues.add(queue)


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
