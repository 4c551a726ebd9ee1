"""What applications and operators do with trainings: submit, get, list, cancel, retry, download."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from core.errors import IllegalMove, InsufficientCredits, NotFound
from core.telemetry import tracing
from core.telemetry.tracing import span
from credits import ledger
from jobs.lifecycle import transitions
from jobs.notices import callbacks
from jobs.remote import pods, runs
from jobs.requests import quotes, repeated_request, training_request
from jobs.requests.acceptance import accept, check_model_id, job_with_key
from jobs.requests.envelope import Origin
from jobs.requests.training_request import TrainingRequest
from jobs.services import Services
from jobs.specs import spec_of
from jobs.view import FileView, JobView, view_of
from notifications.tables import TaskCall
from storage.tables.jobs import ACTIVE, Job, JobEvent, JobPicture, Status


def submit(
    services: Services,
    arguments: Mapping[str, Any],
    origin: Origin = Origin(),  # noqa: B008 - frozen
    call: TaskCall | None = None,
) -> JobView:
    """Accept a training: the job and its hold on credits, in one transaction (`jobs.requests.acceptance`).

    Where a worker has room, the same transaction admits the job (`jobs.admission.decide`) and queues its launch.
    The same idempotency key with the same request returns the same job. The callbacks of the Celery task that asks for
    it (`call`) are kept with the job. Raises SpecInvalid with every fault, KeyReused or InsufficientCredits; then
    nothing is stored.
    """
    with span("submit") as begun:
        request = training_request.parse(arguments, services.settings, services.sources)
        job = _submit(services, request, origin, call)
        tracing.name_job(begun, job.id)
    return get(services, job.id)


def _submit(services: Services, request: TrainingRequest, origin: Origin, call: TaskCall | None = None) -> Job:
    try:
        with services.database.writing() as session:
            return accept(session, request, services.settings, origin, call)
    except (IntegrityError, InsufficientCredits):
        # On PostgreSQL, two requests with one key may race: the other one won, perhaps with the last credits.
        with services.database.writing() as session:
            winner = job_with_key(session, request)
            if winner is None:
                check_model_id(session, request.envelope.model_id)  # or two with one model id
                raise
            callbacks.attach(session, winner, call)
        return winner


def find_started(services: Services, owner_id: str, key: str) -> str | None:
    """The id of the job that an owner has started with an idempotency key."""
    with services.database.reading() as session:
        return session.exec(select(Job.id).where(Job.owner_id == owner_id, Job.idempotency_key == key)).one_or_none()


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
        [view] = _views(services, session, [job], pictures.all())
        return view


def jobs(
    services: Services,
    *,
    owner_id: str | None = None,
    subject_id: str | None = None,
    statuses: Sequence[str] = (),
    active: bool = False,
    ids: Sequence[str] | None = None,
    limit: int = 20,
    before: str | None = None,
) -> list[JobView]:
    """Jobs without their pictures, newest first. Of several conditions, all must be fulfilled.

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
        if ids is not None:
            query = query.where(col(Job.id).in_(ids))
        if statuses:
            query = query.where(col(Job.status).in_(statuses))
        if active:
            query = query.where(col(Job.status).in_(ACTIVE))
        return _views(services, session, session.exec(query).all())


def _views(
    services: Services, session: Session, found: Sequence[Job], pictures: Sequence[JobPicture] = ()
) -> list[JobView]:
    """The views of jobs, by as many queries for all as for one."""
    holds = ledger.holds_of(session, [job.id for job in found])
    newest = runs.newest_of(session, [job.id for job in found if spec_of(job).backend != "local"])
    views = []
    for job in found:
        run = newest.get(job.id)
        server = pods.server_name(session, run) if run else None
        expected = services.places.get(session, job)
        views.append(view_of(job, pictures, holds.get(job.id), run, server, expected))
    return views


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
    with span("submit") as begun:
        request = repeated_request.repeat(job, pictures, key, services.settings, services.sources)
        again = _submit(services, request, Origin(job.message_id, job.style_id))
        tracing.name_job(begun, again.id)
    return get(services, again.id)


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
