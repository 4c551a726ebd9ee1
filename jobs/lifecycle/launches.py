"""Launches and events of jobs: what every module that changes a job writes."""

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from core.clock import utcnow
from core.settings import Settings
from notifications import outbox
from storage.tables.jobs import Job, JobEvent

_LOCKED = "jobs locked for their events"
_INSERT = sa.insert(JobEvent.__table__)  # type: ignore[attr-defined]


def record_event(session: Session, job_id: str, kind: str, **data: Any) -> None:
    """Append an event to a job.

    The job's row is locked, so that its events become visible in the order of their numbers: a reader that continues
    after the last event it has seen misses none. On SQLite, writing transactions run one at a time anyway.
    """
    locked: set[str] = session.info.setdefault(_LOCKED, set())  # until the end of the session's one transaction
    if job_id not in locked and session.get_bind().dialect.name == "postgresql":
        locked.add(job_id)
        session.connection().execute(
            sa.select(col(Job.id)).where(col(Job.id) == job_id).with_for_update(key_share=True)
        )
    session.execute(_INSERT, {"job_id": job_id, "at": utcnow(), "kind": kind, "data": data})


def next_check(due: datetime, launches: int, settings: Settings) -> datetime:
    """When the sweep checks that a worker took a message that is due at `due`: later after each launch."""
    return due + timedelta(seconds=settings.relaunch_after_s * 2 ** min(launches, 6))


def queue_launch(session: Session, job: Job, settings: Settings, delay_s: float = 0.0) -> None:
    """Queue the message from which `tasks.pipeline` sends the remaining stages, once this transaction has committed.

    Also set when the sweep checks that a worker took it.
    """
    due = utcnow() + timedelta(seconds=delay_s)
    look = next_check(due, job.launches, settings)
    session.connection().execute(
        sa.update(Job)
        .where(col(Job.id) == job.id)
        .values(launches=col(Job.launches) + 1, next_look_at=look, lease_holder=None, lease_until=None)
    )
    outbox.put(
        session, "launch", job_id=job.id, owner_id=job.owner_id, payload=outbox.trace_of(session, job.id), due_at=due
    )
