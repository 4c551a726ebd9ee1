"""Periodic repair: jobs that no worker works on, and the audit of the ledger."""

import logging
import time
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import UtcDateTime, utcnow
from core.settings import Settings
from core.telemetry import metrics
from core.telemetry.logging import job_context
from credits.audit import AuditFinding, audit
from jobs.admission import decide, workers
from jobs.admission.queues import every_queue
from jobs.lifecycle import invariants, repair
from jobs.lifecycle.periodic import each
from jobs.notices import notices
from jobs.services import Services
from storage.tables.jobs import IN_FLIGHT, WITHOUT_QUEUE, Job, JobPicture, PeriodicRun, PictureState

log = logging.getLogger(__name__)

# How long the hourly audit repeats an uncharged delivery.
_LEAKS_LOGGED_FOR = timedelta(hours=24)
_SWEEP = "sweep"


def repair_jobs(services: Services, limit: int = 500) -> int:
    """Send every active job again that no worker works on. Returns how many."""
    with services.database.reading() as session:
        candidates = _abandoned_jobs(session, services.settings, limit)

    def repair_one(job_id: str) -> bool:
        with job_context(job_id):
            return repair_job(services, job_id)

    repaired = sum(each("repair", candidates, repair_one))
    if repaired:
        log.warning("%d job(s) had no worker and were sent again", repaired)
    return repaired


def admit_jobs(services: Services) -> None:
    """Admit jobs where there is room that no transaction has noticed: after a worker has vanished, for example."""
    workers.forget_dead(services)
    decide.open_places(services.database, every_queue())


def sweep_done(services: Services) -> None:
    """Record that a sweep ran to its end."""
    metrics.SWEPT_AT.add(time.time())
    with services.database.writing() as session:
        session.merge(PeriodicRun(name=_SWEEP, finished_at=utcnow()))


def last_sweep(session: Session) -> datetime | None:
    """When the last sweep ran to its end; None if there was none."""
    return session.scalar(select(PeriodicRun.finished_at).where(PeriodicRun.name == _SWEEP))


def is_late(session: Session, settings: Settings, since: datetime) -> bool:
    """Whether the last sweep is older than three periods, counted from `since` if that is later."""
    last = max(last_sweep(session) or since, since)
    return utcnow() - last > timedelta(seconds=3 * settings.sweep_s)


def repair_job(services: Services, job_id: str, message_id: str | None = None) -> bool:
    """Send one job again if no worker works on it. Error callbacks call this too, for the launch `message_id`."""
    with services.database.writing() as session:
        return repair.count_failed_launch(session, job_id, message_id, services.settings) or repair.repair_job(
            session, job_id, services.settings
        )


def _abandoned_jobs(session: Session, settings: Settings, limit: int) -> list[str]:
    now = utcnow()
    # Not EXISTS, for which PostgreSQL may read the pictures of all jobs.
    first_lease = sa.select(sa.func.min(col(JobPicture.lease_until), type_=UtcDateTime())).where(
        col(JobPicture.job_id) == col(Job.id), col(JobPicture.state) == PictureState.WAITING
    )
    is_abandoned = sa.or_(
        col(Job.lease_until) < now,
        sa.and_(col(Job.lease_until).is_(None), col(Job.next_look_at) < now, ~repair.is_polled(settings)),
        first_lease.scalar_subquery() < now,
    )
    # Two queries, each over its partial index: one for both would read all waiting jobs.
    found = sa.union_all(
        *(
            sa.select(col(Job.id), col(Job.next_look_at)).where(condition, is_abandoned)
            for condition in (IN_FLIGHT, WITHOUT_QUEUE)
        )
    ).subquery()
    oldest = sa.select(found.c.id).order_by(found.c.next_look_at).limit(limit)
    return list(session.connection().execute(oldest).scalars())


def run_audit(services: Services) -> list[AuditFinding]:
    """Audit the ledger and the jobs; findings, and uncharged deliveries of the last 24 hours, are logged as errors."""
    with services.database.reading() as session:
        findings = audit(session) + invariants.check(session)
        leaked = invariants.leaks(session, since=utcnow() - _LEAKS_LOGGED_FOR)
    metrics.AUDIT_FINDINGS.add(len(findings))
    metrics.AUDITED_AT.add(time.time())
    for finding in findings:
        log.error("ledger: %s", finding)
        notices.alert(services, "audit", f"audit: {finding}")
    if leaked:
        log.error(
            "leak: %d training(s) were delivered but not charged, %d credits in the last %d hours: %s",
            len(leaked),
            sum(leak.credits for leak in leaked),
            _LEAKS_LOGGED_FOR.total_seconds() // 3600,
            ", ".join(leak.job_id for leak in leaked[:20]),
        )
    return findings


def leaks(services: Services) -> list[invariants.Leak]:
    """Every LoRA that was delivered but not charged, because its hold had expired; newest first."""
    with services.database.reading() as session:
        return invariants.leaks(session)
