"""Approval: a job above a price, or the first one of an owner, waits for an operator, if the settings say so.

Such a job is in the queue HELD, which admits nothing. An operator's approval moves it to its own queue.
"""

from datetime import timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.errors import NotApproved, NotFound, SpecInvalid
from core.settings import Settings
from credits import ledger
from jobs.admission import decide
from jobs.admission.queues import HELD, is_waiting, queue_of
from jobs.lifecycle import transitions
from jobs.lifecycle.launches import record_event
from jobs.lifecycle.periodic import each
from jobs.owners import audit_log
from jobs.services import Services
from jobs.specs import spec_of
from jobs.view import Time, View
from notifications import channels
from storage.tables.jobs import Job

_MAX_REASON = 500


class HeldJobView(View):
    """A job that waits for an operator's approval."""

    job_id: str
    owner_id: str
    subject_id: str
    credits: int
    reason: str
    since: Time
    expires_at: Time


def reason_to_hold(session: Session, settings: Settings, owner_id: str, price: int) -> str:
    """Why a job that is accepted now needs an approval; empty if it needs none."""
    above = settings.approval_above
    if above is not None and price > above:
        return f"it costs {price} credits; above {above}, an operator must approve it"
    if settings.approval_first_job:
        earlier = select(Job.id).where(Job.owner_id == owner_id, col(Job.admitted_at).is_not(None)).limit(1)
        if session.exec(earlier).first() is None:
            return "an operator must approve the first training of an owner"
    return ""


def hold(session: Session, job: Job, reason: str) -> None:
    """Let an accepted job wait for an operator, and tell the operators."""
    record_event(session, job.id, "held", reason=reason)
    audit_log.record(session, "job.held", job_id=job.id, owner_id=job.owner_id, reason=reason)
    channels.alert(session, "approval", f"{job.id} waits for your approval: {reason} (imprint approvals)")


def list_held(services: Services, limit: int = 100) -> list[HeldJobView]:
    """The jobs that wait for an approval, oldest first."""
    query = select(Job).where(*_held()).order_by(col(Job.created_at)).limit(limit)
    with services.database.reading() as session:
        return [_view(session, job, services.settings) for job in session.exec(query)]


def approve(services: Services, job_id: str) -> None:
    """Let a held job wait for its turn like any other. Raises NotFound for a job that is not held."""
    with services.database.writing() as session:
        job = _lock(session, job_id)
        job.queue, job.waiting_note = queue_of(spec_of(job)), None
        session.add(job)
        record_event(session, job_id, "approved")
        audit_log.record(session, "job.approved", job_id=job_id, owner_id=job.owner_id)
        decide.may_have_room(session, job.queue)


def refuse(services: Services, job_id: str, reason: str = "") -> None:
    """Fail a held job: its owner gets the credits back, and the reason. Raises NotFound, and SpecInvalid."""
    if len(reason) > _MAX_REASON or not reason.isprintable():
        raise SpecInvalid.of({"reason": f"at most {_MAX_REASON} characters, without control characters"})
    with services.database.writing() as session:
        job = _lock(session, job_id)
        audit_log.record(session, "job.refused", job_id=job_id, owner_id=job.owner_id)
        why = f": {reason.strip()}" if reason.strip() else ""
        transitions.fail(session, job_id, NotApproved(f"an operator refused the training{why}"))


def expire(services: Services, limit: int = 100) -> int:
    """Fail held jobs that no operator has approved in time. Returns how many."""
    before = utcnow() - timedelta(days=services.settings.approval_days)
    late = select(Job.id).where(*_held(), col(Job.created_at) < before).limit(limit)
    with services.database.reading() as session:
        found = session.exec(late).all()
    return sum(each("approvals", found, lambda job_id: _expire(services, job_id)))


def _expire(services: Services, job_id: str) -> bool:
    with services.database.writing() as session:
        days = services.settings.approval_days
        return _locked(session, job_id) is not None and transitions.fail(
            session, job_id, NotApproved(f"no operator approved the training within {days} days")
        )


def _held() -> tuple[sa.ColumnElement[bool], ...]:
    return col(Job.queue) == HELD, is_waiting()


def _locked(session: Session, job_id: str) -> Job | None:
    return session.exec(select(Job).where(Job.id == job_id, *_held()).with_for_update()).one_or_none()


def _lock(session: Session, job_id: str) -> Job:
    job = _locked(session, job_id)
    if job is None:
        raise NotFound(f"no job {job_id} waits for an approval; see: imprint approvals")
    return job


def _view(session: Session, job: Job, settings: Settings) -> HeldJobView:
    hold = ledger.hold_of(session, job.id)
    return HeldJobView(
        job_id=job.id,
        owner_id=job.owner_id,
        subject_id=job.subject_id,
        credits=hold.amount if hold is not None else 0,
        reason=job.waiting_note or "",
        since=job.created_at,
        expires_at=job.created_at + timedelta(days=settings.approval_days),
    )
