"""Overviews for the page: the subjects of an owner, and for operators the whole installation."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from core.clock import utcnow
from jobs.lifecycle import invariants
from jobs.services import Services
from jobs.specs import spec_of
from notifications import outbox
from storage.tables.jobs import ACTIVE, Job, Status
from storage.tables.pictures import StoredPicture, Subject

_MAX_JOBS = 100
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class JobSummary:
    """The progress of a job."""

    job_id: str
    owner_id: str
    subject_id: str
    status: str
    stage: str
    attempt: int
    step: int
    total_steps: int
    created_at: datetime


@dataclass(frozen=True)
class SubjectSummary:
    """A subject in a list. `cover`: the id of a picture that can be shown; `ready`: of its newest ready training."""

    id: str
    pictures: int
    cover: str | None
    train_automatically: bool
    newest: JobSummary | None
    ready: str | None


@dataclass(frozen=True)
class ActiveJob:
    """A job that is not final, and the worker that holds its lease, if one does."""

    job: JobSummary
    base_model: str
    worker: str | None
    seconds_left: float | None


@dataclass(frozen=True)
class FailureCount:
    """How often trainings failed with a code: in the last 24 hours, and in total."""

    code: str | None
    last_day: int
    total: int


@dataclass(frozen=True)
class Problems:
    """What went wrong: failures by code, undelivered notices, LoRAs that were delivered and not charged."""

    failures: list[FailureCount]
    dead_letters: int
    leaks: int


# ---- of an owner ----------------------------------------------------------------------------------------------


def list_subjects(
    services: Services, owner_id: str, *, offset: int = 0, limit: int = 60
) -> tuple[list[SubjectSummary], int]:
    """A page of an owner's subjects that have settings, pictures or trainings, and how many there are.

    Those with the newest trainings come first.
    """
    with services.database.reading() as session:
        names = set(session.exec(select(Subject.id).where(Subject.owner_id == owner_id)))
        pictures = _pictures(session, owner_id)
        newest = _newest_jobs(session, owner_id)
        ready = _newest_ready(session, owner_id)
        automatic = set(
            session.exec(select(Subject.id).where(Subject.owner_id == owner_id, col(Subject.train_automatically)))
        )
    found = sorted(names | pictures.keys() | newest.keys())
    found.sort(key=lambda name: newest[name].id if name in newest else "", reverse=True)
    page = [
        SubjectSummary(
            name,
            *pictures.get(name, (0, None)),
            train_automatically=name in automatic,
            newest=_summary(newest[name]) if name in newest else None,
            ready=ready.get(name),
        )
        for name in found[offset : offset + limit]
    ]
    return page, len(found)


def subject_names(services: Services, owner_id: str, limit: int = 500) -> list[str]:
    """The names of an owner's subjects that have trainings, by name."""
    with services.database.reading() as session:
        names = select(Job.subject_id).where(Job.owner_id == owner_id).distinct().order_by(Job.subject_id)
        return list(session.exec(names.limit(limit)))


def _pictures(session: Session, owner_id: str) -> dict[str, tuple[int, str | None]]:
    """For each subject the number of its pictures, and the id of one with a preview."""
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


def _newest_ready(session: Session, owner_id: str) -> dict[str, str]:
    """By subject the id of its newest training with a LoRA."""
    has_lora = (Job.owner_id == owner_id, Job.status == Status.READY, col(Job.lora_key).is_not(None))
    rows = session.exec(select(Job.subject_id, func.max(Job.id)).where(*has_lora).group_by(Job.subject_id))
    return dict(rows.all())


def _summary(job: Job) -> JobSummary:
    return JobSummary(
        job_id=job.id,
        owner_id=job.owner_id,
        subject_id=job.subject_id,
        status=job.status,
        stage=job.stage,
        attempt=job.attempt,
        step=job.step,
        total_steps=job.total_steps,
        created_at=job.created_at,
    )


# ---- of the installation --------------------------------------------------------------------------------------


def active_jobs(services: Services) -> list[ActiveJob]:
    """The jobs that are not final, oldest first."""
    with services.database.reading() as session:
        query = select(Job).where(col(Job.status).in_(ACTIVE)).order_by(col(Job.id)).limit(_MAX_JOBS)
        return [
            ActiveJob(
                _summary(job),
                base_model=spec_of(job).base_model,
                worker=job.lease_holder if job.lease_until and job.lease_until > utcnow() else None,
                seconds_left=job.seconds_left,
            )
            for job in session.exec(query)
        ]


def problems(services: Services) -> Problems:
    """What went wrong in this installation."""
    with services.database.reading() as session:
        recent = func.sum(sa.case((col(Job.finished_at) > utcnow() - _DAY, 1), else_=0))
        failures = session.exec(
            select(Job.failure_code, recent, func.count())
            .where(Job.status == Status.FAILED)
            .group_by(col(Job.failure_code))
            .order_by(func.count().desc())
        ).all()
        return Problems(
            failures=[FailureCount(code, int(last_day), total) for code, last_day, total in failures],
            dead_letters=outbox.count_dead(session),
            leaks=len(invariants.leaks(session)),
        )
