"""Jobs that no worker and no poll works on: sent again, or failed once their attempts or their time are used up."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import UtcDateTime, utcnow
from core.errors import ImprintError, ReviewExpired, TrainingTimeout, WorkerLost
from core.settings import Settings
from credits import ledger
from jobs.lifecycle import launches, transitions
from jobs.owners import audit_log
from notifications import outbox
from storage.picture_report import StoredReport
from storage.tables.jobs import ACTIVE, Job, JobPicture, PictureState, Stage
from storage.tables.remote import RemoteRun, RunState

MAX_FAILED_LAUNCHES = 3  # in one stage


def repair_job(session: Session, job_id: str, settings: Settings) -> bool:
    """Send a job again that no worker works on, or fail it when its attempts are used up. True if something was done.

    The sweep and error callbacks call this as often as they like: a job with a live lease, or one that is not due yet,
    is left alone.
    """
    job = session.get(Job, job_id, with_for_update=True, populate_existing=True)
    now = utcnow()
    if job is None or job.status not in ACTIVE or _waits_for_its_turn(job):
        return False
    pictures = _waiting_pictures(session, job_id)
    leases = _leases(session, job)
    if any(until >= now for until in leases) or (not leases and job.next_look_at > now):
        return False
    if job.stage == Stage.REVIEW:
        days = settings.review_s / 86400
        return transitions.fail(session, job_id, ReviewExpired(f"its captions were not accepted in {days:g} days"))
    if not leases and session.scalar(select(Job.id).where(Job.id == job_id, is_polled(settings))):
        return False
    if expire_overdue_hold(session, job):
        return True
    for picture in pictures:
        if picture.lease_until is not None:
            _release_picture(session, picture, settings)
    if job.lease_until is not None and job.attempt >= settings.max_attempts:
        reason = job.waiting_note or "no worker survived this stage"
        return transitions.fail(
            session, job_id, WorkerLost(f"{job.stage}: {job.attempt} attempts ended early; {reason}")
        )
    launches.queue_launch(session, job, settings)
    launches.record_event(
        session,
        job_id,
        "retry",
        stage=job.stage,
        attempt=job.attempt,
        reason="no worker was working on it",
        delay_s=0,
    )
    audit_log.record(session, "job.sent_again", job_id=job_id, owner_id=job.owner_id, stage=job.stage)
    return True


def count_failed_launch(session: Session, job_id: str, message_id: str | None, settings: Settings) -> bool:
    """Send a job again whose launch ended in an error before a worker claimed its stage; fail it after the third time.

    Returns False for any other job: one that is final, claimed, polled, or launched again since `message_id`.
    """
    job = session.get(Job, job_id, with_for_update=True, populate_existing=True)
    if job is None or job.status not in ACTIVE or _waits_for_its_turn(job) or _leases(session, job):
        return False
    if message_id is None or outbox.newest(session, job_id, "launch") != message_id:
        return False
    if session.scalar(select(Job.id).where(Job.id == job_id, is_polled(settings))):
        return False
    failed = job.failed_launches + 1
    if failed >= MAX_FAILED_LAUNCHES:
        reason = (
            f"{job.stage}: {failed} launches ended in an error before a worker had begun; the workers' logs say why"
        )
        return transitions.fail(session, job_id, ImprintError(reason))
    delay_s = settings.retry_base_s * 2 ** (failed - 1)
    session.connection().execute(sa.update(Job).where(col(Job.id) == job_id).values(failed_launches=failed))
    launches.queue_launch(session, job, settings, delay_s)
    launches.record_event(
        session, job_id, "retry", stage=job.stage, attempt=job.attempt,
        reason="an error before a worker had begun", delay_s=delay_s,
    )  # fmt: skip
    audit_log.record(session, "job.sent_again", job_id=job_id, owner_id=job.owner_id, stage=job.stage)
    return True


def _waits_for_its_turn(job: Job) -> bool:
    """Whether admission sends the job, and nothing else."""
    return job.admitted_at is None and bool(job.queue)


def is_polled(settings: Settings) -> sa.ColumnElement[bool]:
    """The SQL condition that a remote server trains the job and polls still come."""
    last_look = sa.func.coalesce(RemoteRun.looked_at, RemoteRun.submitted_at, type_=UtcDateTime())
    patience = timedelta(seconds=max(10 * settings.remote_poll_s, settings.relaunch_after_s))
    return sa.exists().where(
        col(RemoteRun.job_id) == col(Job.id),
        col(RemoteRun.state) == RunState.SUBMITTED,
        last_look > sa.literal(utcnow() - patience, UtcDateTime()),
    )


def _waiting_pictures(session: Session, job_id: str) -> Sequence[JobPicture]:
    return session.exec(
        select(JobPicture).where(JobPicture.job_id == job_id, JobPicture.state == PictureState.WAITING)
    ).all()


def _leases(session: Session, job: Job) -> list[datetime]:
    """When the leases on the job and its pictures end or have ended."""
    ends = (job.lease_until, *(picture.lease_until for picture in _waiting_pictures(session, job.id)))
    return [until for until in ends if until is not None]


def expire_overdue_hold(session: Session, job: Job) -> bool:
    """Fail a job whose hold has expired and return the credits. Call it only if no worker works on the job."""
    hold = ledger.hold_of(session, job.id)
    if hold is None or hold.state != "held" or hold.expires_at > utcnow():
        return False
    ledger.expire(session, hold.id)
    audit_log.record(session, "credits.expired", job_id=job.id, owner_id=job.owner_id, amount=hold.amount)
    transitions.fail(session, job.id, TrainingTimeout("the training did not end before its credit hold expired"))
    return True


def _release_picture(session: Session, picture: JobPicture, settings: Settings) -> None:
    """Release a picture whose worker died; after the last attempt it is left out."""
    picture.lease_until = None
    picture.lease_holder = None
    if picture.attempt >= settings.max_attempts:
        picture.state = PictureState.BAD
        picture.faults = ["unreadable"]
        picture.report = StoredReport(error=f"the worker died {picture.attempt} times while it read the picture")
    session.add(picture)
    session.flush()
