"""The transitions of a drawing. Each runs in the caller's transaction: status, credits and message change together.

    pending -> drawing -> ready | failed | cancelled          a final status never changes

A leased transition needs the newest lease, a final one an open drawing. So of two callers the second changes nothing,
and every transition may be tried again.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from core.clock import utcnow
from core.errors import ImprintError, LeaseLost, TrainingTimeout, WorkerLost
from core.settings import Settings
from credits import ledger
from credits.price import price_of_drawing, price_of_drawing_part
from jobs.drawings.drawing_request import size_of
from jobs.lifecycle.launches import next_check
from jobs.notices import notices
from jobs.owners import audit_log
from jobs.requests.prices import drawing_rate_of
from notifications import outbox
from storage.tables.drawings import OPEN, DrawingRow, DrawingStatus

TOPIC = "drawing"  # of the messages that launch a drawing
HOLD = timedelta(days=1)  # a drawing that no worker has finished by then fails


@dataclass(frozen=True)
class DrawingLease:
    """A worker's claim on one drawing. `job_id` and `stage` are what logs and metrics call it."""

    job_id: str  # the drawing's id
    token: int
    attempt: int
    stage: str = "draw"

    def is_current(self) -> sa.ColumnElement[bool]:
        """The SQL condition that this lease is still the newest claim."""
        return sa.and_(
            col(DrawingRow.id) == self.job_id,
            col(DrawingRow.lease_token) == self.token,
            col(DrawingRow.status) == DrawingStatus.DRAWING,
        )

    def write(self, session: Session, **values: object) -> None:
        """Write `values` to the drawing, or raise LeaseLost and write nothing."""
        update = sa.update(DrawingRow).where(self.is_current()).values(**values)
        if session.connection().execute(update).rowcount != 1:
            raise LeaseLost(f"{self.job_id}: token {self.token} is not the newest")

    def is_held(self, session: Session) -> bool:
        """Whether a write under this lease would succeed now."""
        found = session.connection().execute(sa.select(sa.literal(1)).select_from(DrawingRow).where(self.is_current()))
        return found.first() is not None

    def renew(self, session: Session, lease_s: float) -> None:
        """Extend the lease by `lease_s` seconds from now. Raises LeaseLost if another claim has replaced it."""
        self.write(session, lease_until=utcnow() + timedelta(seconds=lease_s))


def queue_launch(session: Session, row: DrawingRow, settings: Settings, delay_s: float = 0.0) -> None:
    """Queue the message that launches a drawing, and set when the sweep checks that a worker took it."""
    due = utcnow() + timedelta(seconds=delay_s)
    look = next_check(due, row.launches, settings)
    session.connection().execute(
        sa.update(DrawingRow)
        .where(col(DrawingRow.id) == row.id)
        .values(
            status=DrawingStatus.PENDING,
            launches=col(DrawingRow.launches) + 1,
            next_look_at=look,
            lease_token=col(DrawingRow.lease_token) + 1,
            lease_holder=None,
            lease_until=None,
        )
    )
    payload = {"drawing_id": row.id, "family": row.family}
    outbox.put(session, "launch", job_id=None, topic=TOPIC, owner_id=row.owner_id, payload=payload, due_at=due)


def claim(session: Session, drawing_id: str, holder: str, lease_s: float) -> tuple[DrawingLease, DrawingRow] | None:
    """Claim an open drawing that no worker draws; None for any other."""
    now = utcnow()
    free = sa.or_(col(DrawingRow.lease_until).is_(None), col(DrawingRow.lease_until) < now)
    row = session.scalars(
        sa.update(DrawingRow)
        .where(col(DrawingRow.id) == drawing_id, col(DrawingRow.status).in_(OPEN), free)
        .values(
            status=DrawingStatus.DRAWING,
            started_at=sa.func.coalesce(col(DrawingRow.started_at), now),
            attempt=col(DrawingRow.attempt) + 1,
            lease_token=col(DrawingRow.lease_token) + 1,
            lease_holder=holder,
            lease_until=now + timedelta(seconds=lease_s),
        )
        .returning(DrawingRow),
        execution_options={"synchronize_session": False, "populate_existing": True},
    ).one_or_none()
    return None if row is None else (DrawingLease(row.id, row.lease_token, row.attempt), row)


def hand_over(session: Session, lease: DrawingLease, settings: Settings) -> None:
    """Release the lease of a worker that stops. The attempt does not count; another worker gets the drawing."""
    lease.write(session, attempt=max(lease.attempt - 1, 0))
    queue_launch(session, session.get_one(DrawingRow, lease.job_id, populate_existing=True), settings)


def postpone(session: Session, lease: DrawingLease, error: ImprintError, settings: Settings) -> None:
    """Release the lease for another attempt, with a delay that doubles."""
    lease.write(session, waiting_note=error.message)
    row = session.get_one(DrawingRow, lease.job_id, populate_existing=True)
    queue_launch(session, row, settings, settings.retry_base_s * 2 ** (lease.attempt - 1))


def finish(session: Session, lease: DrawingLease, settings: Settings) -> bool:
    """Charge the whole price and mark the drawing ready. False if the lease is lost."""
    if not lease.is_held(session):
        return False
    row = session.get_one(DrawingRow, lease.job_id, with_for_update=True, populate_existing=True)
    charge = price_of_drawing(drawing_rate_of(row.family, settings), row.total_steps, size_of(row))
    return _end(session, row.id, DrawingStatus.READY, charge=charge, step=row.total_steps, waiting_note=None)


def fail(session: Session, drawing_id: str, error: ImprintError) -> bool:
    """Fail a drawing and release its hold. False if it was final already. A failed drawing costs nothing."""
    return _end(
        session, drawing_id, DrawingStatus.FAILED, failure_code=error.code, failure_message=error.message
    )  # fmt: skip


def fail_leased(session: Session, lease: DrawingLease, error: ImprintError) -> bool:
    """Fail the drawing if the lease is still valid."""
    return lease.is_held(session) and fail(session, lease.job_id, error)


def cancel(session: Session, drawing_id: str, settings: Settings) -> bool:
    """Cancel a drawing, charge the steps done, release the rest. False if it was final already.

    A worker that draws it stops within a step.
    """
    row = session.get(DrawingRow, drawing_id, with_for_update=True, populate_existing=True)
    if row is None or row.status not in OPEN:
        return False
    done = min(row.step, row.total_steps)
    charge = price_of_drawing_part(drawing_rate_of(row.family, settings), done, size_of(row))
    return _end(
        session, drawing_id, DrawingStatus.CANCELLED, charge=charge,
        failure_code="cancelled", failure_message="cancelled by the owner",
    )  # fmt: skip


def repair(session: Session, drawing_id: str, settings: Settings) -> bool:
    """Launch a drawing again that no worker draws; fail it after its attempts, or once its hold's time is over.

    False if there was nothing to do.
    """
    row = session.get(DrawingRow, drawing_id, with_for_update=True, populate_existing=True)
    now = utcnow()
    if row is None or row.status not in OPEN:
        return False
    if row.lease_until is not None and row.lease_until >= now:
        return False
    if row.lease_until is None and row.next_look_at > now:
        return False
    if row.created_at + HOLD < now:
        return fail(session, row.id, TrainingTimeout("no worker finished the drawing within a day"))
    if row.lease_until is not None and row.attempt >= settings.max_attempts:
        return fail(session, row.id, WorkerLost(f"{row.attempt} workers ended while they drew it"))
    queue_launch(session, row, settings)
    return True


def _end(session: Session, drawing_id: str, status: DrawingStatus, *, charge: int = 0, **values: Any) -> bool:
    """End an open drawing: charge `charge` credits of its hold, if that is live, and release the rest."""
    row = session.scalars(
        sa.update(DrawingRow)
        .where(col(DrawingRow.id) == drawing_id, col(DrawingRow.status).in_(OPEN))
        .values(
            status=status,
            finished_at=utcnow(),
            lease_token=col(DrawingRow.lease_token) + 1,
            lease_holder=None,
            lease_until=None,
            charged=0,
            **values,
        )
        .returning(DrawingRow),
        execution_options={"populate_existing": True},
    ).one_or_none()
    if row is None:
        return False
    hold = ledger.hold_of(session, drawing_id)
    if hold is not None and hold.state == "held":
        row.charged = min(charge, hold.amount)
        ledger.settle(session, hold.id, row.charged)  # settling 0 credits is a release
    audit_log.record(
        session, f"drawing.{status}", job_id=row.job_id, owner_id=row.owner_id, drawing_id=row.id, charged=row.charged
    )
    notices.check_low_credits(session, row.owner_id)
    return True
