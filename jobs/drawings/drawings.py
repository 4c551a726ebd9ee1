"""What owners do with drawings: ask for one, look at it, cancel it; and the sweep, which repairs them."""

import logging
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.errors import IllegalMove, InsufficientCredits, KeyReused, NotFound, TooManyRequests
from core.ids import new_id
from credits import ledger
from jobs import keys
from jobs.deletion import guard
from jobs.drawings import drawing_request
from jobs.drawings import drawing_transitions as transitions
from jobs.drawings.drawing_request import DrawingPlan, DrawingRequest
from jobs.drawings.drawing_view import DrawingView, view_of
from jobs.lifecycle.periodic import each
from jobs.notices import notices
from jobs.owners import audit_log
from jobs.service import get_job
from jobs.services import Services
from jobs.specs import spec_of
from jobs.subjects import loras
from storage.tables.drawings import OPEN, DrawingRow, DrawingStatus
from storage.tables.jobs import Job, Status
from training.families.registry import trained_here

log = logging.getLogger(__name__)


def submit(services: Services, arguments: Mapping[str, Any]) -> DrawingView:
    """Accept a drawing: its row, its hold on credits and its message in one transaction.

    The same idempotency key with the same request returns the same drawing. Raises SpecInvalid with every fault,
    NotFound, LoraNotReady, IllegalMove (the training is not ready), KeyReused, InsufficientCredits or TooManyRequests;
    then nothing is stored.
    """
    request = drawing_request.parse(arguments)
    job_id = request.job_id or _newest(services, request)
    try:
        with services.database.writing() as session:
            row = _with_key(session, request) or _create(session, services, request, job_id)
            return _view(session, row)
    except (IntegrityError, InsufficientCredits, TooManyRequests):
        # On PostgreSQL, two requests with one key may race: the other one won.
        with services.database.reading() as session:
            winner = _with_key(session, request)
            if winner is None:
                raise
            return _view(session, winner)


def price(services: Services, arguments: Mapping[str, Any]) -> DrawingPlan:
    """What `submit` of the same arguments would draw, and its price. Raises as `submit` does. Starts nothing."""
    request = drawing_request.parse(arguments)
    job_id = request.job_id or _newest(services, request)
    with services.database.reading() as session:
        return drawing_request.plan(request, spec_of(_ready_job(session, job_id, request.owner_id)), services.settings)


def get(services: Services, drawing_id: str, owner_id: str | None = None) -> DrawingView:
    """A drawing's public view. `owner_id` is the caller; None is an operator, who may see every drawing.

    Raises NotFound, with the same message for a drawing that does not exist and for a drawing of another owner.
    """
    with services.database.reading() as session:
        return _view(session, _row(session, drawing_id, owner_id))


def of_training(services: Services, job_id: str, owner_id: str | None = None, limit: int = 20) -> list[DrawingView]:
    """The drawings with the LoRA of a training, newest first. Raises NotFound as `service.get_job` does."""
    with services.database.reading() as session:
        get_job(session, job_id, owner_id)
        newest = select(DrawingRow).where(DrawingRow.job_id == job_id).order_by(col(DrawingRow.created_at).desc())
        return [_view(session, row) for row in session.exec(newest.limit(limit))]


def cancel(services: Services, drawing_id: str, owner_id: str | None = None) -> DrawingView:
    """Cancel an open drawing: the steps done are charged, the rest of its hold is released at once.

    Raises NotFound as `get` does, and IllegalMove for a drawing that ended in another way.
    """
    with services.database.writing() as session:
        row = _row(session, drawing_id, owner_id)
        if not transitions.cancel(session, drawing_id, services.settings) and row.status != DrawingStatus.CANCELLED:
            raise IllegalMove(f"drawing {drawing_id} is {row.status} already and cannot be cancelled")
    return get(services, drawing_id)


def picture(services: Services, drawing_id: str, number: int, owner_id: str | None = None) -> bytes:
    """One picture of a drawing, as PNG. Raises NotFound, also for a picture that is not drawn yet."""
    view = get(services, drawing_id, owner_id)
    found = next((one for one in view.pictures if one.number == number), None)
    if found is None:
        raise NotFound(f"drawing {drawing_id} has no picture {number}")
    return services.store.get(found.key)


def repair(services: Services, limit: int = 500) -> int:
    """Launch the drawings again that no worker draws; returns how many. The sweep calls this."""
    now = utcnow()
    with services.database.reading() as session:
        lost = select(DrawingRow.id).where(
            col(DrawingRow.status).in_(OPEN),
            sa.or_(
                col(DrawingRow.lease_until) < now,
                sa.and_(col(DrawingRow.lease_until).is_(None), col(DrawingRow.next_look_at) < now),
            ),
        )
        found = list(session.exec(lost.order_by(col(DrawingRow.next_look_at)).limit(limit)))

    def repair_one(drawing_id: str) -> bool:
        with services.database.writing() as session:
            return transitions.repair(session, drawing_id, services.settings)

    repaired = sum(each("drawings", found, repair_one))
    if repaired:
        log.warning("%d drawing(s) had no worker and were sent again", repaired)
    return repaired


# ---- one drawing ------------------------------------------------------------------------------------------------


def _newest(services: Services, request: DrawingRequest) -> str:
    return loras.resolve(services, request.owner_id, str(request.subject_id), request.base_model).job_id


def _ready_job(session: Session, job_id: str, owner_id: str) -> Job:
    job = get_job(session, job_id, owner_id)
    if job.status != Status.READY or not job.lora_key:
        raise IllegalMove(f"job {job_id} is {job.status} and has no LoRA to draw with")
    if job.family and job.family not in trained_here():
        raise IllegalMove(f"workers do not draw with base models of the family {job.family}")
    return job


def _with_key(session: Session, request: DrawingRequest) -> DrawingRow | None:
    key = request.idempotency_key
    if key is None:
        return None
    row = session.exec(
        select(DrawingRow).where(DrawingRow.owner_id == request.owner_id, DrawingRow.idempotency_key == key)
    ).one_or_none()
    if row is not None and row.request_sha256 != request.sha256:
        raise KeyReused(f"idempotency key {key!r} was used for another drawing; use a new key for a new drawing")
    return row


def _create(session: Session, services: Services, request: DrawingRequest, job_id: str) -> DrawingRow:
    settings = services.settings
    guard.lock_owner(session, request.owner_id)
    job = _ready_job(session, job_id, request.owner_id)
    guard.refuse_if_deleting(session, job.owner_id, job.subject_id)
    session.refresh(job, with_for_update=True)  # its deletion waits, and then deletes this drawing too
    made = drawing_request.plan(request, spec_of(job), settings)
    _check_limit(session, request.owner_id, settings.drawings_per_owner)
    row = DrawingRow(
        id=new_id("draw"),
        owner_id=request.owner_id,
        job_id=job.id,
        idempotency_key=request.idempotency_key,
        request_sha256=request.sha256,
        strength=request.strength,
        count=request.count,
        compare=request.compare,
        **{name: value for name, value in vars(made).items() if name != "credits"},
    )
    if made.credits:
        row.hold_id = ledger.hold(
            session, row.owner_id, row.id, made.credits,
            key=f"hold:{row.id}", expires_at=utcnow() + transitions.HOLD, what="drawing",
        )  # fmt: skip
    session.add(row)
    session.flush()
    transitions.queue_launch(session, row, settings)
    audit_log.record(
        session, "drawing.accepted", job_id=row.job_id, owner_id=row.owner_id, drawing_id=row.id, credits=made.credits
    )
    notices.check_low_credits(session, row.owner_id)
    session.refresh(row)
    return row


def _check_limit(session: Session, owner_id: str, most: int) -> None:
    """Raises TooManyRequests if the owner has so many open drawings. Call it after `guard.lock_owner`."""
    waiting = select(sa.func.count()).select_from(DrawingRow)
    waiting = waiting.where(col(DrawingRow.owner_id) == owner_id, col(DrawingRow.status).in_(OPEN))
    if session.scalar(waiting) >= most:  # type: ignore[operator]
        raise TooManyRequests(f"{most} drawings of this owner wait already; wait until one is done, or cancel one")


def _row(session: Session, drawing_id: str, owner_id: str | None) -> DrawingRow:
    row = session.get(DrawingRow, drawing_id)
    if row is None or owner_id not in (None, row.owner_id):
        raise NotFound(f"there is no drawing {drawing_id}")
    return row


def _view(session: Session, row: DrawingRow) -> DrawingView:
    return view_of(row, ledger.hold_of(session, row.id), keys.drawing(row.id))
