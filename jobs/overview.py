"""What there is, at a glance: the subjects of an owner, and for operators the whole installation."""

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from core.clock import utcnow
from jobs import invariants
from jobs.services import Services
from jobs.specs import spec_of
from notifications import outbox
from storage.tables import ACTIVE, Job, Status, StoredPicture, Subject

MOST_SUBJECTS = 500
_MOST_JOBS = 100
_DAY = timedelta(days=1)


# ---- of an owner ----------------------------------------------------------------------------------------------


def subjects_of(services: Services, owner_id: str) -> list[dict[str, Any]]:
    """The subjects of an owner, those with the newest trainings first: whatever has settings, pictures or trainings."""
    with services.database.reading() as session:
        names = set(session.exec(select(Subject.id).where(Subject.owner_id == owner_id)))
        pictures = _pictures(session, owner_id)
        newest = _newest_jobs(session, owner_id)
        automatic = set(
            session.exec(select(Subject.id).where(Subject.owner_id == owner_id, col(Subject.train_automatically)))
        )
    found = sorted(names | pictures.keys() | newest.keys())
    found.sort(key=lambda name: newest[name].id if name in newest else "", reverse=True)
    return [
        {
            "id": name,
            "pictures": pictures.get(name, (0, None))[0],
            "cover": pictures.get(name, (0, None))[1],
            "train_automatically": name in automatic,
            "newest": _told(newest[name]) if name in newest else None,
        }
        for name in found[:MOST_SUBJECTS]
    ]


def _pictures(session: Session, owner_id: str) -> dict[str, tuple[int, str | None]]:
    """Of each subject how many pictures there are, and one that can be shown."""
    shown = sa.case((col(StoredPicture.preview_key).is_not(None), col(StoredPicture.id)))
    rows = session.exec(
        select(StoredPicture.subject_id, func.count(), func.min(shown))
        .where(StoredPicture.owner_id == owner_id, col(StoredPicture.removed_at).is_(None), ~col(StoredPicture.is_mask))
        .group_by(StoredPicture.subject_id)
    )
    return {subject_id: (count, cover) for subject_id, count, cover in rows}


def _newest_jobs(session: Session, owner_id: str) -> dict[str, Job]:
    newest = select(func.max(Job.id)).where(Job.owner_id == owner_id).group_by(Job.subject_id)  # ids sort by time
    return {job.subject_id: job for job in session.exec(select(Job).where(col(Job.id).in_(newest)))}


def _told(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "owner_id": job.owner_id,
        "subject_id": job.subject_id,
        "status": job.status,
        "stage": job.stage,
        "attempt": job.attempt,
        "step": job.step,
        "total_steps": job.total_steps,
        "created_at": job.created_at,
    }


# ---- of the installation --------------------------------------------------------------------------------------


def at_work(services: Services) -> list[dict[str, Any]]:
    """The trainings that are not final, oldest first, with who works on them (None: nobody at this moment)."""
    with services.database.reading() as session:
        query = select(Job).where(col(Job.status).in_(ACTIVE)).order_by(col(Job.id)).limit(_MOST_JOBS)
        return [
            _told(job)
            | {
                "base_model": spec_of(job).base_model,
                "worker": job.lease_holder if job.lease_until and job.lease_until > utcnow() else None,
                "seconds_left": job.seconds_left,
            }
            for job in session.exec(query)
        ]


def troubles(services: Services) -> dict[str, Any]:
    """What went wrong: failures by code (of the last day, and in all), notices given up, unpaid deliveries."""
    with services.database.reading() as session:
        recent = func.sum(sa.case((col(Job.finished_at) > utcnow() - _DAY, 1), else_=0))
        failures = session.exec(
            select(Job.failure_code, recent, func.count())
            .where(Job.status == Status.FAILED)
            .group_by(col(Job.failure_code))
            .order_by(func.count().desc())
        ).all()
        return {
            "failures": [{"code": code, "day": int(day), "all": count} for code, day, count in failures],
            "dead_letters": outbox.count_dead(session),
            "leaks": len(invariants.leaks(session)),
        }
