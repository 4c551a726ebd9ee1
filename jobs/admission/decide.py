"""Admission: which waiting jobs may start. docs/adr/0009-admission.md has the reasons.

A transaction that accepts a job, or may let one start, says so here. Just before it commits, `Database.writing` calls
`decide_due`, which admits the jobs whose turn it is, and queues their launch.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

import sqlalchemy as sa
from sqlmodel import Session

from core.clock import utcnow
from core.settings import Settings
from credits import ledger
from jobs.admission.queues import every_queue
from jobs.admission.statement import ADMIT_NEXT, HAS_ROOM, TURN, USE, decay, parameters
from jobs.lifecycle.launches import queue_launch, record_event
from storage.database import Database, lock_name
from storage.tables.jobs import Job, Priority

# In the info of a session whose transaction may let a job start.
DUE = "imprint_admission"
_OPEN_S = 1.0
LOCK = "imprint admission"
# Jobs admitted in one transaction, which holds locks that others wait for: where one or two places became free, and
# where many may have.
_FEW, _MANY = 4, 16


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


def may_have_room(session: Session, queue: str) -> None:
    """A place in a queue may be free: at the end of this transaction, `decide_due` admits the next jobs."""
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


def admit_at_commit(session: Session, job_id: str, queue: str) -> None:
    """At the end of this transaction, `decide_due` admits a job that it accepts, or lets it wait."""
    _of(session).accepted.add(job_id)
    may_have_room(session, queue)


def add_used(session: Session, owner_id: str, seconds: float) -> None:
    """Count slot seconds as used by an owner."""
    used = _of(session).used
    used[owner_id] = used.get(owner_id, 0.0) + max(seconds, 0.0)


def _of(session: Session) -> Due:
    found: Due = session.info.setdefault(DUE, Due())
    return found


def decide_due(session: Session, settings: Settings) -> None:
    """Record what owners have used, and admit the jobs whose turn it is, as the last part of a transaction."""
    found: Due = session.info.pop(DUE)
    session.flush()
    lock_name(session, LOCK)
    now = utcnow()
    for owner_id, seconds in sorted(found.used.items()):
        session.connection().execute(USE, {"owner_id": owner_id, "seconds": seconds, **decay(settings, now)})
    admitted: set[str] = set()
    most = len(found.accepted) + (_MANY if found.opened else _FEW)
    if found.used and _limits_running(session, settings):
        found.queues |= set(every_queue())  # the owner's jobs may wait for another queue
    for queue in sorted(found.queues & set(every_queue())):
        while len(admitted) < most and (job_id := _admit_next(session, queue, settings)):
            admitted.add(job_id)
            _launch(session, job_id, settings, has_waited=job_id not in found.accepted)
    for job_id in sorted(found.accepted - admitted):
        record_event(session, job_id, "queued")
    session.flush()
    found.is_full = len(admitted) == most


def _limits_running(session: Session, settings: Settings) -> bool:
    """Whether a limit of running jobs may keep a job waiting although its queue has room."""
    stored = sa.text("SELECT 1 FROM usage_limit WHERE name = 'running_jobs' LIMIT 1")
    return settings.limit_running_jobs is not None or session.connection().execute(stored).first() is not None


def _admit_next(session: Session, queue: str, settings: Settings) -> str | None:
    """Admit the next job of a queue; None if there is no room, or no job that may start."""
    connection, given = session.connection(), parameters(queue, settings, utcnow())
    if connection.execute(HAS_ROOM, given).first() is None:
        return None
    job_id: str | None = connection.execute(ADMIT_NEXT[connection.dialect.name], given).scalar()
    return job_id


def _launch(session: Session, job_id: str, settings: Settings, *, has_waited: bool) -> None:
    job = session.get_one(Job, job_id, populate_existing=True)
    turn = {"owner_id": job.owner_id, "now_s": utcnow().timestamp()}
    session.connection().execute(TURN[Priority(job.priority)], turn)
    if has_waited:
        record_event(session, job_id, "admitted")
        if job.hold_id is not None:
            ledger.extend(session, job.hold_id, utcnow() + timedelta(days=settings.hold_days))
    queue_launch(session, job, settings)
