"""The events and messages of trainings that ended long ago are deleted in batches, if the operator wishes."""

from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col

from core.clock import utcnow
from jobs.services import Services
from notifications.messages import WAITING
from notifications.tables import MESSAGE, TaskCall
from storage.tables.jobs import Job, JobEvent, JobPicture

_JOBS, _MESSAGES = 100, 1000  # in one transaction: a few thousand rows, so that other writers wait for milliseconds
_BATCHES = 20  # in one sweep


def trim(services: Services) -> int:
    """Delete what `history_days` says. Returns how many trainings lost their history.

    Trainings with a message that still waits keep theirs until it is sent or given up.
    """
    days = services.settings.history_days
    if days is None:
        return 0
    before = utcnow() - timedelta(days=days)
    trimmed = 0
    for _ in range(_BATCHES):
        with services.database.writing() as session:
            found = _trim_jobs(session, before)
        trimmed += found
        if found < _JOBS:
            break
    for _ in range(_BATCHES):
        with services.database.writing() as session:
            if _delete_messages_of_no_job(session, before) < _MESSAGES:
                break
    return trimmed


def _trim_jobs(session: Session, before: datetime) -> int:
    waits = sa.exists().where(MESSAGE.c.job_id == col(Job.id), WAITING)
    old = (
        sa.select(col(Job.id), col(Job.thinned_at))
        .where(col(Job.finished_at) < before, col(Job.trimmed_at).is_(None), ~waits)
        .order_by(col(Job.finished_at))
        .limit(_JOBS)
        .with_for_update(skip_locked=True)
    )
    found = session.execute(old).all()
    ids = [row[0] for row in found]
    # Of a training whose pictures retention has deleted, the rows of its pictures say nothing any more.
    thinned = [row[0] for row in found if row[1] is not None]
    session.execute(sa.delete(JobEvent).where(col(JobEvent.job_id).in_(ids)))
    session.execute(sa.delete(MESSAGE).where(MESSAGE.c.job_id.in_(ids)))
    session.execute(sa.delete(TaskCall).where(col(TaskCall.job_id).in_(ids)))
    session.execute(sa.delete(JobPicture).where(col(JobPicture.job_id).in_(thinned)))
    session.execute(sa.update(Job).where(col(Job.id).in_(ids)).values(trimmed_at=utcnow()))
    return len(ids)


def _delete_messages_of_no_job(session: Session, before: datetime) -> int:
    old = sa.select(MESSAGE.c.id).where(MESSAGE.c.job_id.is_(None), MESSAGE.c.created_at < before, sa.not_(WAITING))
    deleted = sa.delete(MESSAGE).where(MESSAGE.c.id.in_(old.limit(_MESSAGES))).returning(MESSAGE.c.id)
    return len(session.execute(deleted).all())
