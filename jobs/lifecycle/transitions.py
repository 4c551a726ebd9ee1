"""The transitions of a job. Each runs in one transaction: status, credits and messages change together.

    pending -> training -> ready | failed | cancelled          a final status never changes
    preprocess -> caption -> review -> dataset -> train -> upload -> settle       a stage only goes forward

Most jobs have no `caption`, and only those that wait for their owner a `review`.

A leased transition needs a valid lease, a final one an active job. So of two callers the second changes nothing, and
every transition may be tried again.
"""

import logging
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from core.clock import utcnow
from core.errors import ImprintError
from core.settings import Settings
from credits import ledger
from credits.price import price_of_part
from jobs.admission import decide
from jobs.lifecycle.launches import queue_launch, record_event
from jobs.lifecycle.leases import Lease
from jobs.notices import callbacks, notices
from jobs.owners import audit_log
from jobs.requests.prices import credits_for, rate_of
from jobs.specs import spec_of
from jobs.view import JobView, view_of
from notifications import channels, outbox, webhooks
from notifications.webhook_payload import Event, NoticeJob
from storage.tables.jobs import ACTIVE, Job, JobEvent, PictureState, Stage, Status

log = logging.getLogger(__name__)

FINAL_NOTICES: dict[Status, Event] = {
    Status.READY: "training.completed",
    Status.FAILED: "training.failed",
    Status.CANCELLED: "training.cancelled",
}
# The object of a job gets what is written from the row that comes back; without that, the session evaluates the values
# itself, which took a sixth of the time to settle.
_OF_JOB = sa.update(Job).where(col(Job.id) == sa.bindparam("of_job")).returning(Job)
_OF_JOB = _OF_JOB.execution_options(synchronize_session=False, populate_existing=True)
KEY_PREFIXES = ("http:", "model_training:")  # keep the idempotency keys of the doors apart
# After preprocess, which ends when the stage after it is claimed.
NEXT_STAGE = {
    Stage.CAPTION: Stage.DATASET, Stage.DATASET: Stage.TRAIN, Stage.TRAIN: Stage.UPLOAD, Stage.UPLOAD: Stage.SETTLE,
}  # fmt: skip


def queue_notices(session: Session, job: Job, event: Event) -> None:
    """Queue notices about a job: to its webhook if it has one, and by e-mail if the owner wants that."""
    view = view_of(job, [], ledger.hold_of(session, job.id))
    if job.webhook_url:
        webhooks.put(session, _notice_job(job, view), event, job.webhook_url)
    notices.queue_owner_mail(session, view, event)


def _notice_job(job: Job, view: JobView) -> NoticeJob:
    """What a webhook has of a job: some of its public view, and what its receiver finds its own records by."""
    key = job.idempotency_key
    for door in KEY_PREFIXES:
        key = key.removeprefix(door) if key else key
    return NoticeJob.model_validate(view).model_copy(
        update={
            "idempotency_key": key,
            "message_id": job.message_id,
            "style_id": job.style_id,
            "model_link": job.model_link,
        }
    )


# ---- leased transitions ---------------------------------------------------------------------------------------------


def begin(session: Session, job_id: str) -> None:
    """Move a pending job to `training`, when a worker first works on it."""
    started = _OF_JOB.where(col(Job.status) == Status.PENDING).values(status=Status.TRAINING, started_at=utcnow())
    job = session.scalars(started, {"of_job": job_id}).one_or_none()
    if job is not None:
        record_start(session, job)


def record_start(session: Session, job: Job) -> None:
    record_event(session, job.id, "status", status=Status.TRAINING)
    queue_notices(session, job, "training.processing")


def record_stage(session: Session, job_id: str, stage: Stage) -> None:
    """Record that a job is at a stage, unless its last event of this kind has it."""
    stages = sa.select(col(JobEvent.data)).where(col(JobEvent.job_id) == job_id, col(JobEvent.kind) == "stage")
    last = session.connection().execute(stages.order_by(col(JobEvent.id).desc()).limit(1)).scalar()
    if last is None or last.get("stage") != stage:
        record_event(session, job_id, "stage", stage=stage)


def record_picture(session: Session, lease: Lease, state: PictureState, **values: Any) -> None:
    """Record the state of the leased picture and release its lease."""
    lease.write(session, state=state, lease_holder=None, lease_until=None, **values)


def advance(session: Session, lease: Lease, settings: Settings, **values: Any) -> None:
    """End the leased stage: record `values` and move the job to the next stage."""
    stage = NEXT_STAGE[lease.stage]
    lease.write(
        session,
        stage=stage,
        attempt=0,
        launches=0,
        failed_launches=0,
        lease_holder=None,
        lease_until=None,
        next_look_at=utcnow() + timedelta(seconds=settings.relaunch_after_s),
        **values,
    )
    record_event(session, lease.job_id, "stage", stage=stage)
    if lease.stage is Stage.TRAIN:
        _free_place(session, session.get_one(Job, lease.job_id, populate_existing=True))


def give_back(session: Session, lease: Lease, reason: str, settings: Settings, delay_s: float) -> None:
    """Give a job back that waits for an answer of the application, and launch it again. The attempt does not count.

    At `preprocess` it takes no place of a job that trains, and the stage is claimed from there again.
    """
    lease.write(
        session, stage=Stage.PREPROCESS, attempt=0, launches=0, waiting_note=reason, lease_token=lease.token + 1
    )
    job = session.get_one(Job, lease.job_id, populate_existing=True)
    outbox.drop_unsent(session, job.id, ["launch"])
    queue_launch(session, job, settings, delay_s)
    decide.may_have_room(session, job.queue)


def begin_review(session: Session, lease: Lease, settings: Settings) -> None:
    """End the stage `caption` of a job whose owner wants to see the captions first.

    It waits without a worker and without a place. Its hold stays until the time for the review is over.
    """
    until = utcnow() + timedelta(seconds=settings.review_s)
    lease.write(
        session, stage=Stage.REVIEW, attempt=0, launches=0, failed_launches=0, lease_holder=None, lease_until=None,
        needs_captions=False, waiting_note="the captions wait for their owner's review", next_look_at=until,
    )  # fmt: skip
    job = session.get_one(Job, lease.job_id, populate_existing=True)
    if job.hold_id is not None:
        ledger.extend(session, job.hold_id, until + timedelta(days=settings.hold_days))
    record_event(session, job.id, "stage", stage=Stage.REVIEW)
    queue_notices(session, job, "training.review")
    decide.may_have_room(session, job.queue)


def end_review(session: Session, job: Job, settings: Settings) -> None:
    """The owner has accepted the captions: the job waits for its turn again. The caller has locked its row."""
    session.connection().execute(
        sa.update(Job).where(col(Job.id) == job.id).values(
            stage=Stage.DATASET, admitted_at=None, waiting_note=None, next_look_at=utcnow(),
        )
    )  # fmt: skip
    session.refresh(job)
    if job.hold_id is not None:
        ledger.extend(session, job.hold_id, utcnow() + timedelta(days=settings.hold_days))
    record_event(session, job.id, "stage", stage=Stage.DATASET)
    decide.admit_at_commit(session, job.id, job.queue)


def _free_place(session: Session, job: Job) -> None:
    """A job leaves the train stage, or ends before: count what it used, and let the next one start."""
    done_s = job.train_seconds or job.step * (job.seconds_per_step or 0.0)
    decide.add_used(session, job.owner_id, done_s)
    decide.may_have_room(session, job.queue)


# ---- final transitions ----------------------------------------------------------------------------------------------


def settle(session: Session, job_id: str, settings: Settings) -> bool:
    """Charge for the steps that were trained, mark the job ready, queue the notice. False if it was final already.

    If the hold has been resolved already (it expired before the training ended), nothing is charged and the LoRA is
    delivered.
    """
    job = session.get(Job, job_id, with_for_update=True, populate_existing=True)
    if job is None or job.stage != Stage.SETTLE or job.status not in ACTIVE or job.hold_id is None:
        return False
    spec = spec_of(job)
    charge = credits_for(spec, job.total_steps, settings)
    hold = ledger.hold_of(session, job_id)
    if hold is None or hold.state != "held":
        reason = "the hold was resolved before the training ended; nothing is charged"
        record_event(session, job_id, "leak", reason=reason, credits=charge)
        channels.alert(session, "leak", f"leak: {job_id} was delivered, but {charge} credits were not charged")
        log.error("leak: %s was delivered, but %d credits were not charged", job_id, charge)
    return _end(session, job_id, Status.READY, charge=charge, seconds_left=0.0)


def fail(session: Session, job_id: str, error: ImprintError) -> bool:
    """Fail the job, release its hold, queue the notice. False if it was final already. A failed job costs nothing."""
    return _end(
        session, job_id, Status.FAILED,
        failure_code=error.code, failure_message=error.message, details=error.details,
    )  # fmt: skip


def fail_leased(session: Session, lease: Lease, error: ImprintError) -> bool:
    """Fail the job if the lease is still valid."""
    return lease.is_held(session) and fail(session, lease.job_id, error)


def cancel(session: Session, job_id: str, settings: Settings) -> bool:
    """Cancel the job, charge the steps done, release the rest, queue the notice. False if it was final already.

    A worker that holds the job's lease loses it.
    """
    job = session.get(Job, job_id, with_for_update=True, populate_existing=True)
    if job is None or job.status not in ACTIVE:
        return False
    return _end(
        session, job_id, Status.CANCELLED, charge=price_of_steps_done(job, settings),
        failure_code="cancelled", failure_message="cancelled by the owner",
    )  # fmt: skip


def price_of_steps_done(job: Job, settings: Settings) -> int:
    """What a cancelled job costs: its recorded steps, rounded down; nothing before the training begins."""
    if job.stage not in (Stage.TRAIN, Stage.UPLOAD, Stage.SETTLE):
        return 0
    spec = spec_of(job)
    steps = max(0, min(job.step, job.total_steps))
    return price_of_part(rate_of(spec, settings), steps, spec.resolution)


def _end(session: Session, job_id: str, status: Status, *, charge: int = 0, **values: Any) -> bool:
    """End an active job: charge `charge` credits of its hold, if that is live, and release the rest."""
    if status is Status.READY:  # what went wrong on the way no longer matters
        values |= {"waiting_note": None}
    values |= {"status": status, "finished_at": utcnow(), "charged": 0, "lease_holder": None, "lease_until": None}
    ended = _OF_JOB.where(col(Job.status).in_(ACTIVE)).values(lease_token=col(Job.lease_token) + 1, **values)
    job = session.scalars(ended, {"of_job": job_id}).one_or_none()
    if job is None:
        return False
    if job.stage not in (Stage.UPLOAD, Stage.SETTLE):
        _free_place(session, job)
    hold = ledger.hold_of(session, job_id)
    if hold is not None and hold.state == "held":
        job.charged = min(charge, hold.amount)
        ledger.settle(session, hold.id, job.charged)  # settling 0 credits is a release
    record_event(session, job_id, "status", status=status, code=job.failure_code)
    audit_log.record(
        session, f"job.{status}", job_id=job_id, owner_id=job.owner_id, code=job.failure_code, charged=job.charged
    )
    outbox.drop_unsent(session, job_id, ["launch"])
    queue_notices(session, job, FINAL_NOTICES[status])
    callbacks.queue_end(session, job)
    notices.check_low_credits(session, job.owner_id)
    if status is Status.FAILED:
        notices.alert_failure(session, job_id, job.owner_id, job.failure_code)
    outbox.put(session, "cleanup", job_id=job_id, owner_id=job.owner_id, payload={})
    return True
