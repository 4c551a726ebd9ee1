"""Questions to the application about a picture, for which several jobs may wait: its screening, and its caption."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col
from sqlmodel.sql.expression import SelectOfScalar

from storage.tables.jobs import Job, JobPicture


def uses_picture(sha256: str) -> sa.ColumnElement[bool]:
    """Whether a job trains on the prepared picture with this content."""
    return sa.exists().where(col(JobPicture.job_id) == col(Job.id), col(JobPicture.prepared_sha256) == sha256)


def is_abandoned(session: Session, waiting: SelectOfScalar[Any], asked_at: datetime | None, job: Job) -> bool:
    """Whether all jobs that waited for an answer have ended, so that nobody looked after it until `job` came.

    waiting: the jobs that wait for it now. asked_at: when the application was last asked.
    """
    if asked_at is None or job.created_at <= asked_at:
        return False
    return session.exec(waiting.where(col(Job.created_at) <= asked_at).limit(1)).first() is None
