"""What lies around: jobs that nobody works on, messages that nobody sent, books to check."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core import metrics
from core.clock import utcnow
from core.logging import job_context
from core.settings import Settings
from credits.audit import Finding, audit
from jobs import invariants, transitions
from jobs.notices import notices
from jobs.services import Services
from jobs.specs import spec_of
from storage.tables import ACTIVE, Job, JobPicture, PictureState, Stage

log = logging.getLogger(__name__)

# A leak stays an error of the hourly audit for this long: one that was missed is said again, not for ever.
_LEAKS_ARE_TOLD = timedelta(hours=24)


@dataclass(frozen=True)
class Lacking:
    """What a job still needs: from which stage on, and which pictures."""

    stage: Stage
    waiting: Sequence[int]
    family: str
    backend: str


def what_is_lacking(services: Services, job_id: str) -> Lacking | None:
    """None for a job that is final or not there."""
    with services.database.reading() as session:
        job = session.get(Job, job_id)
        if job is None or job.status not in ACTIVE:
            return None
        waiting = session.exec(
            select(JobPicture.position).where(JobPicture.job_id == job_id, JobPicture.state == PictureState.WAITING)
        ).all()
        spec = spec_of(job)
        return Lacking(Stage(job.stage), waiting, spec.family, spec.backend)


def repair_jobs(services: Services, limit: int = 500) -> int:
    """Put every job that nobody works on back on its way. Gives how many were."""
    with services.database.reading() as session:
        candidates = _nobody_at_work(session, services.settings, limit)
    repaired = 0
    for job_id in candidates:
        with job_context(job_id), services.database.writing() as session:
            repaired += transitions.repair(session, job_id, services.settings)
    if repaired:
        log.warning("%d job(s) had nobody at work and were put back on their way", repaired)
    metrics.SWEPT_AT.add(time.time())
    return repaired


def repair_job(services: Services, job_id: str) -> bool:
    """The same for one job: what an error callback calls."""
    with services.database.writing() as session:
        return transitions.repair(session, job_id, services.settings)


def _nobody_at_work(session: Session, settings: Settings, limit: int) -> list[str]:
    now = utcnow()
    dead_picture = sa.exists().where(
        col(JobPicture.job_id) == col(Job.id),
        col(JobPicture.state) == PictureState.WAITING,
        col(JobPicture.lease_until) < now,
    )
    query = (
        select(Job.id)
        .where(
            col(Job.status).in_(ACTIVE),
            sa.or_(
                col(Job.lease_until) < now,
                sa.and_(
                    col(Job.lease_until).is_(None), col(Job.next_look_at) < now, ~transitions.is_looked_after(settings)
                ),
                dead_picture,
            ),
        )
        .order_by(col(Job.next_look_at))
        .limit(limit)
    )
    return list(session.exec(query))


def check_books(services: Services) -> list[Finding]:
    """Audit the ledger, and the jobs against it; what is off, and what leaked today, is logged as an error."""
    with services.database.reading() as session:
        findings = audit(session) + invariants.check(session)
        leaked = invariants.leaks(session, since=utcnow() - _LEAKS_ARE_TOLD)
    metrics.AUDIT_FINDINGS.add(len(findings))
    metrics.AUDITED_AT.add(time.time())
    for finding in findings:
        log.error("ledger: %s", finding)
        notices.alert(services, "audit", f"audit: {finding}")
    if leaked:
        log.error(
            "leak: %d training(s) were delivered and not charged, %d credits in the last %d hours: %s",
            len(leaked),
            sum(leak.credits for leak in leaked),
            _LEAKS_ARE_TOLD.total_seconds() // 3600,
            ", ".join(leak.job_id for leak in leaked[:20]),
        )
    return findings


def leaks(services: Services) -> list[invariants.Leak]:
    """Every LoRA that was delivered and not charged, since its hold was over by then; the newest first."""
    with services.database.reading() as session:
        return invariants.leaks(session)
