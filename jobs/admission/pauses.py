"""Pauses: in the whole service, a queue or a family, no job starts. What was accepted waits."""

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.errors import NotFound, SpecInvalid
from jobs.admission import decide
from jobs.admission.decide import LOCK
from jobs.admission.queues import every_queue
from jobs.lifecycle.launches import record_event
from jobs.owners import audit_log
from jobs.services import Services
from jobs.view import Time, View
from storage.database import insert_if_absent, lock_name
from storage.tables.admission import AdmissionPause
from storage.tables.jobs import ACTIVE, Job, Stage
from storage.tables.remote import RemoteRun, RunState
from training.families.registry import FAMILIES

SCOPES = ("all", *(f"queue:{queue}" for queue in every_queue()), *(f"family:{family}" for family in FAMILIES))
_MAX_REASON = 200


class PauseView(View):
    """A pause: of `all`, `queue:NAME` or `family:NAME`."""

    scope: str
    reason: str
    paused_at: Time


def pause(services: Services, scope: str, reason: str = "") -> PauseView:
    """Let no job of a scope start, from now on. Pausing again changes nothing. Raises SpecInvalid.

    Trainings that run continue. Jobs that were sent and have not begun to train go back to their places.
    """
    _check(scope)
    if len(reason) > _MAX_REASON or not reason.isprintable():
        raise SpecInvalid.of({"reason": f"at most {_MAX_REASON} characters, without control characters"})
    with services.database.writing() as session:
        lock_name(session, LOCK)  # the decisions of others are committed, and the next ones see the pause
        insert_if_absent(session, AdmissionPause(scope=scope, reason=reason))
        _take_back(session, scope)
        audit_log.record(session, "admission.paused", scope=scope, reason=reason)
        return _view(session.get_one(AdmissionPause, scope))


def resume(services: Services, scope: str) -> None:
    """End a pause: jobs start again at once. Raises SpecInvalid, and NotFound if there is no such pause."""
    _check(scope)
    with services.database.writing() as session:
        row = session.get(AdmissionPause, scope)
        if row is None:
            raise NotFound(f"{scope} is not paused")
        session.delete(row)
        audit_log.record(session, "admission.resumed", scope=scope)
    decide.open_places(services.database, every_queue())


def list_pauses(services: Services) -> list[PauseView]:
    with services.database.reading() as session:
        return [_view(row) for row in session.exec(select(AdmissionPause).order_by(AdmissionPause.scope))]


def _take_back(session: Session, scope: str) -> None:
    """Take back the admission of jobs that no worker trains; their messages find nothing to do."""
    kind, _, name = scope.partition(":")
    submitted = sa.exists().where(
        col(RemoteRun.job_id) == col(Job.id), col(RemoteRun.state) == RunState.SUBMITTED
    )  # fmt: skip
    waiting = sa.update(Job).where(
        col(Job.status).in_(ACTIVE), col(Job.admitted_at).is_not(None), col(Job.queue) != "", ~submitted,
        sa.or_(
            col(Job.stage) == Stage.PREPROCESS,
            sa.and_(
                col(Job.stage).in_((Stage.CAPTION, Stage.DATASET, Stage.TRAIN)),
                sa.or_(col(Job.lease_until).is_(None), col(Job.lease_until) < utcnow()),
            ),
        ),
    )  # fmt: skip
    if kind == "queue":
        waiting = waiting.where(col(Job.queue) == name)
    elif kind == "family":
        waiting = waiting.where(col(Job.family) == name)
    taken = session.connection().execute(waiting.values(admitted_at=None).returning(col(Job.id))).scalars().all()
    for job_id in sorted(taken):
        record_event(session, job_id, "queued", reason="paused")


def _check(scope: str) -> None:
    if scope not in SCOPES:
        raise SpecInvalid.of({"scope": f"must be one of {', '.join(SCOPES)}"})


def _view(row: AdmissionPause) -> PauseView:
    return PauseView(scope=row.scope, reason=row.reason, paused_at=row.paused_at)
