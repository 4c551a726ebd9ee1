"""What applications and operators do with trainings: submit, get, list, cancel, retry, download."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from core import actor
from core.clock import utcnow
from core.errors import IllegalMove, InsufficientCredits, KeyReused, NotFound, SpecInvalid
from core.ids import new_id
from core.settings import Settings
from core.telemetry import tracing
from core.telemetry.tracing import span
from credits import ledger
from jobs.admission import approvals, due, workers
from jobs.admission.queues import HELD, queue_of, shape_of
from jobs.deletion import guard
from jobs.lifecycle import transitions
from jobs.notices import callbacks, notices
from jobs.owners import audit_log, limits
from jobs.remote import pods, runs
from jobs.requests import quotes, repeated_request, training_request
from jobs.requests.prices import credits_for
from jobs.requests.training_request import Origin, TrainingRequest
from jobs.services import Services
from jobs.specs import spec_columns, spec_of
from jobs.stages import intake
from jobs.view import FileView, JobView, view_of
from notifications.tables import TaskCall
from storage.tables.deletions import DeletedTraining
from storage.tables.jobs import ACTIVE, EndTask, Job, JobEvent, JobPicture, Priority, Stage, Status
from training.data import trigger_words


def submit(
    services: Services,
    arguments: Mapping[str, Any],
    origin: Origin = Origin(),  # noqa: B008 - frozen
    call: TaskCall | None = None,
) -> JobView:
    """Accept a training: the job, its hold on credits and its first message in one transaction.

    The same idempotency key with the same request returns the same job. The callbacks of the Celery task that asks for
    it (`call`) are kept with the job. Raises SpecInvalid with every fault, KeyReused or InsufficientCredits; then
    nothing is stored.
    """
    return _start(
        services, lambda: training_request.parse(arguments, services.settings, services.sources), origin, call
    )


def _start(
    services: Services, parse: Callable[[], TrainingRequest], origin: Origin, call: TaskCall | None = None
) -> JobView:
    with span("submit") as begun:
        job = _submit(services, parse(), origin, call)
        tracing.name_job(begun, job.id)
    return get(services, job.id)


def _submit(services: Services, request: TrainingRequest, origin: Origin, call: TaskCall | None) -> Job:
    try:
        with services.database.writing() as session:
            return accept(session, request, services.settings, origin, call)
    except (IntegrityError, InsufficientCredits):
        # On PostgreSQL, two requests with one key may race: the other one won, perhaps with the last credits.
        with services.database.writing() as session:
            winner = _job_with_key(session, request)
            if winner is None:
                _check_model_id(session, request.envelope.model_id)  # or two with one model id
                raise
            callbacks.attach(session, winner, call)
        return winner


def accept(
    session: Session,
    request: TrainingRequest,
    settings: Settings,
    origin: Origin = Origin(),  # noqa: B008 - frozen
    call: TaskCall | None = None,
) -> Job:
    """The job of a request, in the caller's transaction: an earlier one with the same key, or a new one."""
    job = _job_with_key(session, request) or _create(session, request, settings, origin)
    callbacks.attach(session, job, call)
    return job


def _job_with_key(session: Session, request: TrainingRequest) -> Job | None:
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


def find_started(services: Services, owner_id: str, key: str) -> str | None:
    """The id of the job that an owner has started with an idempotency key."""
    with services.database.reading() as session:
        return session.exec(select(Job.id).where(Job.owner_id == owner_id, Job.idempotency_key == key)).one_or_none()


def _check_model_id(session: Session, model_id: str | None) -> None:
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
    _check_model_id(session, envelope.model_id)
    workers.check_captioner(session, spec, settings)
    steps = spec.steps(len(envelope.images))
    price = credits_for(spec, steps, settings)
    hold_reason = approvals.reason_to_hold(session, settings, envelope.owner_id, price)
    job = Job(
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
    job.token_id = actor.current().token_id
    limits.check_job(session, settings, job.owner_id, job.token_id, price)
    pictures, of_pictures = intake.rows_for(session, job.id, request)
    of_word = trigger_words.advice(spec.trigger_word)
    job.notes = [*origin.notes, *([of_word] if of_word else []), *of_pictures] or None
    job.hold_id = ledger.hold(
        session,
        envelope.owner_id,
        job.id,
        price,
        key=f"hold:{job.id}",
        expires_at=utcnow() + timedelta(days=settings.hold_days),
    )
    session.add(job)
    session.flush()
    session.add_all(pictures)
    transitions.record_event(session, job.id, "status", status=Status.PENDING)
    transitions.record_event(session, job.id, "stage", stage=Stage.PREPROCESS)
    session.flush()
    if not hold_reason:
        due.accept(session, job.id, job.queue)
    audit_log.record(
        session, "job.accepted", job_id=job.id, owner_id=job.owner_id, priority=envelope.priority, credits=price
    )
    if hold_reason:
        approvals.hold(session, job, hold_reason)
    notices.check_low_credits(session, job.owner_id)
    return job


def get_job(session: Session, job_id: str, owner_id: str | None) -> Job:
    """The job with this id. `owner_id` is the caller; None is an operator, who may see every job.

    Raises NotFound, with the same message for a job that does not exist and for a job of another owner.
    """
    job = session.get(Job, job_id)
    if job is None or owner_id not in (None, job.owner_id):
        raise NotFound(f"there is no job {job_id}")
    return job


def get(services: Services, job_id: str, owner_id: str | None = None) -> JobView:
    """A job's public view. Raises NotFound as `get_job` does."""
    with services.database.reading() as session:
        job = get_job(session, job_id, owner_id)
        pictures = session.exec(
            select(JobPicture).where(JobPicture.job_id == job_id).order_by(col(JobPicture.position))
        )
        return _view(services, session, job, pictures.all())


def jobs(
    services: Services,
    *,
    owner_id: str | None = None,
    subject_id: str | None = None,
    statuses: Sequence[str] = (),
    active: bool = False,
    limit: int = 20,
    before: str | None = None,
) -> list[JobView]:
    """Jobs without their pictures, newest first. `statuses` and `active` together: jobs that fulfil both.

    `before`: the id of the last job of the page before this one.
    """
    with services.database.reading() as session:
        query = select(Job).order_by(col(Job.created_at).desc(), col(Job.id).desc()).limit(limit)
        if before is not None:
            last = select(Job.created_at).where(Job.id == before).scalar_subquery()
            is_older = sa.and_(col(Job.created_at) == last, col(Job.id) < before)
            query = query.where(sa.or_(col(Job.created_at) < last, is_older))
        if owner_id is not None:
            query = query.where(Job.owner_id == owner_id)
        if subject_id is not None:
            query = query.where(Job.subject_id == subject_id)
        if statuses:
            query = query.where(col(Job.status).in_(statuses))
        if active:
            query = query.where(col(Job.status).in_(ACTIVE))
        return [_view(services, session, job, []) for job in session.exec(query)]


def _view(services: Services, session: Session, job: Job, pictures: Sequence[JobPicture]) -> JobView:
    run = None if spec_of(job).backend == "local" else runs.newest(session, job.id)
    server = pods.server_name(session, run) if run else None
    expected = services.places.get(session, job)
    return view_of(job, pictures, ledger.hold_of(session, job.id), run, server, expected)


def events(services: Services, job_id: str, after: int = 0, *, owner_id: str | None = None) -> list[JobEvent]:
    """A job's events after number `after`, oldest first. Raises NotFound as `get_job` does."""
    with services.database.reading() as session:
        get_job(session, job_id, owner_id)
        query = select(JobEvent).where(JobEvent.job_id == job_id, col(JobEvent.id) > after)
        return list(session.exec(query.order_by(col(JobEvent.id))))


def cancel(services: Services, job_id: str, owner_id: str | None = None) -> JobView:
    """Cancel an active job: the steps done are charged, the rest of its hold is released at once, and its worker
    stops within a step.

    Raises NotFound as `get_job` does, and IllegalMove for a job that ended in another way.
    """
    with services.database.writing() as session:
        job = get_job(session, job_id, owner_id)
        if not transitions.cancel(session, job_id, services.settings) and job.status != Status.CANCELLED:
            raise IllegalMove(f"job {job_id} is {job.status} already and cannot be cancelled")
    return get(services, job_id)


def retry(services: Services, job_id: str, owner_id: str | None = None, key: str | None = None) -> JobView:
    """Start a new job with the pictures and recipe of one that has ended. Its model has an id of its own.

    The same `key` starts it once. Raises NotFound as `get_job` does, IllegalMove for an active job, and what `submit`
    raises.
    """
    with services.database.reading() as session:
        job = get_job(session, job_id, owner_id)
        if job.status in ACTIVE:
            raise IllegalMove(f"job {job_id} is still {job.status}; cancel it first, or wait")
        pictures = session.exec(
            select(JobPicture).where(JobPicture.job_id == job_id).order_by(col(JobPicture.position))
        ).all()

    def parse() -> TrainingRequest:
        return repeated_request.repeat(job, pictures, key, services.settings, services.sources)

    return _start(services, parse, Origin(job.message_id, job.style_id))


def quote_again(services: Services, job_id: str, owner_id: str | None = None) -> quotes.Quote:
    """What `retry` would cost and how long it would take.

    Raises NotFound as `get_job` does, SpecInvalid as `quotes.quote`.
    """
    with services.database.reading() as session:
        job = get_job(session, job_id, owner_id)
        pictures = session.exec(select(JobPicture).where(JobPicture.job_id == job_id)).all()
    return quotes.quote(services, repeated_request.arguments_of(job, pictures))


def cost_of_cancelling(services: Services, job_id: str, owner_id: str | None = None) -> int:
    """The credits that cancelling a job now would charge. Raises NotFound as `get_job` does."""
    with services.database.reading() as session:
        job = get_job(session, job_id, owner_id)
    return transitions.price_of_steps_done(job, services.settings)


def get_lora(services: Services, job_id: str, owner_id: str | None = None) -> FileView:
    """The LoRA file of a ready job. Raises NotFound as `get_job` does, IllegalMove for a job without a file."""
    view = get(services, job_id, owner_id)
    if view.lora is None or view.status != Status.READY:
        raise IllegalMove(f"job {job_id} is {view.status} and has no LoRA file")
    return view.lora


def download(services: Services, job_id: str, path: Path, owner_id: str | None = None) -> FileView:
    """Copy a ready job's LoRA file to `path`. Raises as `get_lora` does."""
    lora = get_lora(services, job_id, owner_id)
    services.store.get_file(lora.key, path)
    return lora
