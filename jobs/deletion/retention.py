"""Retention: the pictures and kept checkpoints of trainings that ended long ago are deleted, if the operator wishes."""

from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from jobs import keys, shared_objects
from jobs.deletion import rows
from jobs.lifecycle.periodic import each
from jobs.owners import audit_log
from jobs.services import Services
from storage.tables.jobs import ACTIVE, Job, JobPicture
from storage.tables.pictures import StoredPicture


def sweep(services: Services) -> int:
    """Delete what `retention_days` says. Returns how many trainings were thinned."""
    days = services.settings.retention_days
    if days is None:
        return 0
    before = utcnow() - timedelta(days=days)
    old = select(Job.id).where(_is_old(before), col(Job.thinned_at).is_(None)).order_by(col(Job.finished_at)).limit(100)
    with services.database.reading() as session:
        found = session.exec(old).all()
    thinned = len(each("retention", found, lambda job_id: _thin(services, job_id, before)))
    if thinned:
        shared_objects.collect(services)
    return thinned


def _is_old(before: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(col(Job.status).not_in(ACTIVE), col(Job.finished_at) < before)


def _thin(services: Services, job_id: str, before: datetime) -> None:
    with services.database.reading() as session:
        job = session.get_one(Job, job_id)
    for key in list(services.store.list(keys.kept_loras(job.public_model_id))):
        if key != job.lora_key:  # its owner delivers this one
            services.store.delete(key)
    services.store.delete_prefix(keys.checkpoints(job_id))
    with services.database.writing() as session:
        job = session.get_one(Job, job_id, with_for_update=True)
        pictures = session.exec(select(JobPicture).where(JobPicture.job_id == job_id)).all()
        for picture in pictures:
            for picture_id in filter(None, (picture.reference, picture.mask)):
                _erase_if_old(session, picture_id, job.owner_id, before)
            rows.erase_job_picture(session, picture, job)
        job.thinned_at = utcnow()
        session.add(job)
        audit_log.record(session, "job.thinned", job_id=job_id, owner_id=job.owner_id)


def _erase_if_old(session: Session, picture_id: str, owner_id: str, before: datetime) -> None:
    """Erase a stored picture, unless a newer training uses it."""
    picture = session.get(StoredPicture, picture_id, with_for_update=True)
    if picture is None or picture.owner_id != owner_id:
        return
    newer = sa.exists().where(
        col(JobPicture.job_id) == col(Job.id),
        sa.not_(_is_old(before)),
        sa.or_(col(JobPicture.reference) == picture_id, col(JobPicture.mask) == picture_id),
    )
    if not session.connection().execute(sa.select(newer)).scalar():
        rows.erase_picture(session, picture)
