"""Accepts a training request in the caller's transaction: the job, its pictures and its hold on credits.

Admission decides at the end of the same transaction whether the job is launched now or waits.
"""

from datetime import timedelta

from sqlmodel import Session, select

from core import actor
from core.clock import utcnow
from core.errors import KeyReused, SpecInvalid
from core.ids import new_id
from core.settings import Settings
from credits import ledger
from jobs.admission import approvals, decide, workers
from jobs.admission.queues import HELD, queue_of, shape_of
from jobs.deletion import guard
from jobs.lifecycle import launches
from jobs.notices import callbacks, notices
from jobs.owners import audit_log, limits
from jobs.requests import quotes
from jobs.requests.envelope import Origin
from jobs.requests.prices import credits_for
from jobs.requests.training_request import TrainingRequest
from jobs.specs import spec_columns
from jobs.stages import intake
from notifications.tables import TaskCall
from storage.tables.deletions import DeletedTraining
from storage.tables.jobs import EndTask, Job, Priority, Stage, Status
from training.data import trigger_words


def accept(
    session: Session,
    request: TrainingRequest,
    settings: Settings,
    origin: Origin = Origin(),  # noqa: B008 - frozen
    call: TaskCall | None = None,
) -> Job:
    """The job of a request, in the caller's transaction: an earlier one with the same key, or a new one."""
    job = job_with_key(session, request) or _create(session, request, settings, origin)
    callbacks.attach(session, job, call)
    return job


def job_with_key(session: Session, request: TrainingRequest) -> Job | None:
    """The owner's earlier job with the request's idempotency key. Raises KeyReused if that request was another one."""
    key = request.envelope.idempotency_key
    if key is None:
        return None
    guard.refuse_deleted_key(session, request.envelope.owner_id, key)
    job = session.exec(
        select(Job).where(Job.owner_id == request.envelope.owner_id, Job.idempotency_key == key)
    ).one_or_none()
    if job is not None and job.request_sha256 != request.sha256:
        raise KeyReused(
            f"idempotency key {key!r} was used for another request; use a new key for a new request",
            {"job_id": job.id},
        )
    return job


def check_model_id(session: Session, model_id: str | None) -> None:
    """Raises SpecInvalid if another training has this id: its file is there, or will be."""
    if is_model_id_taken(session, model_id):
        raise SpecInvalid.of({"model_id": f"{model_id} is taken by another training; each needs an id of its own"})


def is_model_id_taken(session: Session, model_id: str | None) -> bool:
    """Whether a training was given this id."""
    if model_id is None:
        return False
    # The files of a training that is being deleted may still be there.
    deleting = select(DeletedTraining.id).where(DeletedTraining.model_id == model_id)
    taken = session.exec(select(Job.id).where(Job.model_id == model_id)).first()
    return taken is not None or session.exec(deleting).first() is not None


def _create(session: Session, request: TrainingRequest, settings: Settings, origin: Origin) -> Job:
    envelope, spec = request.envelope, request.spec
    guard.lock_owner(session, envelope.owner_id)
    guard.refuse_if_deleting(session, envelope.owner_id, envelope.subject_id)
    check_model_id(session, envelope.model_id)
    workers.check_captioner(session, spec, settings)
    price = credits_for(spec, spec.steps(len(envelope.images)), settings)
    hold_reason = approvals.reason_to_hold(session, settings, envelope.owner_id, price)
    job = _new_job(session, request, origin, hold_reason)
    limits.check_job(session, settings, job.owner_id, job.token_id, price)
    pictures, of_pictures = intake.rows_for(session, job.id, request)
    of_word = trigger_words.advice(spec.trigger_word)
    job.notes = [*origin.notes, *([of_word] if of_word else []), *of_pictures] or None
    expires_at = utcnow() + timedelta(days=settings.hold_days)
    job.hold_id = ledger.hold(session, job.owner_id, job.id, price, key=f"hold:{job.id}", expires_at=expires_at)
    session.add(job)
    session.flush()
    session.add_all(pictures)
    launches.record_event(session, job.id, "status", status=Status.PENDING)
    launches.record_event(session, job.id, "stage", stage=Stage.PREPROCESS)
    session.flush()
    if not hold_reason:
        decide.admit_at_commit(session, job.id, job.queue)
    audit_log.record(
        session, "job.accepted", job_id=job.id, owner_id=job.owner_id, priority=envelope.priority, credits=price
    )
    if hold_reason:
        approvals.hold(session, job, hold_reason)
    notices.check_low_credits(session, job.owner_id)
    return job


def _new_job(session: Session, request: TrainingRequest, origin: Origin, hold_reason: str) -> Job:
    envelope, spec = request.envelope, request.spec
    steps = spec.steps(len(envelope.images))
    return Job(
        id=new_id("job"),
        owner_id=envelope.owner_id,
        subject_id=envelope.subject_id,
        idempotency_key=envelope.idempotency_key,
        request_sha256=request.sha256,
        **spec_columns(spec),
        queue=HELD if hold_reason else queue_of(spec),
        waiting_note=hold_reason or None,
        shape=shape_of(spec),
        expected_s=quotes.expected_seconds(session, spec, steps),
        priority=Priority[envelope.priority.upper()],
        token_id=actor.current().token_id,
        webhook_url=envelope.webhook_url,
        on_end=EndTask(**envelope.on_end.model_dump()) if envelope.on_end else None,
        allow_missing=envelope.allow_missing,
        model_id=envelope.model_id,
        model_link=envelope.model_link,
        review=envelope.review,
        needs_captions=envelope.review or spec.captions == "auto",
        reference=envelope.reference,
        message_id=origin.message_id,
        style_id=origin.style_id,
        total_steps=steps,
    )
