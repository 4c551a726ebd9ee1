"""Screening: the application's screener sees each prepared picture before a training may use it.

The dataset stage asks for the pictures that have no verdict and gives its job back, so no worker waits. The job is
launched again when the last verdict is there, or in a minute. A verdict is kept by content, so a picture is screened
once. The screener is a Celery task or an HTTP address (`screen_task`).
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from core.clock import utcnow
from core.errors import NotFound, ScreeningUnavailable, Unreachable
from core.settings import Settings
from jobs import keys
from jobs.lifecycle import transitions
from jobs.lifecycle.leases import Lease
from jobs.owners import audit_log
from jobs.questions import is_abandoned, uses_picture
from jobs.services import Services
from jobs.view import Time, View
from notifications import application, channels, outbox, screener
from notifications.application import PictureQuestion, SendTask
from notifications.screener import ScreeningVerdict
from storage.database import insert_if_absent
from storage.picture_report import StoredReport
from storage.tables.jobs import ACTIVE, Job, JobPicture, PictureState
from storage.tables.screening import Screening, ScreeningState

log = logging.getLogger(__name__)

TOPIC = "screening"  # of the messages that ask
_LOOK_AGAIN_S = 3600.0  # at a job whose pictures wait for a person: a decision launches it at once
_UNDECIDED = (ScreeningState.WAITING, ScreeningState.HELD)
_STATES = {"accept": ScreeningState.ACCEPTED, "refuse": ScreeningState.REFUSED, "hold": ScreeningState.HELD}


class HeldPicture(View):
    """A picture that waits for a person, and the active trainings that wait with it."""

    sha256: str
    reason: str | None
    since: Time
    owner_id: str
    subject_id: str
    job_ids: list[str]


# ---- in the dataset stage -------------------------------------------------------------------------------------


def screen(services: Services, lease: Lease, rows: Sequence[JobPicture]) -> tuple[list[JobPicture], str | None]:
    """Mark the refused pictures among `rows` as bad. Returns them, and what the job waits for.

    If the job waits, the lease is given back. Raises ScreeningUnavailable after the patience.
    """
    settings = services.settings
    good = {row.prepared_sha256: row for row in rows if row.state == PictureState.GOOD and row.prepared_sha256}
    if settings.screen_task is None:
        return [], None
    with services.database.writing() as session:
        lease.renew(session, settings.lease_s)
        job = session.get_one(Job, lease.job_id)
        found = _ask_for(session, settings.screen_task, job, list(good), utcnow())
        fault = _overdue(found, settings)
        if fault is not None:  # a retry of the training asks again
            undecided = sa.delete(Screening).where(
                col(Screening.sha256).in_(good), col(Screening.state).in_(_UNDECIDED)
            )
            session.connection().execute(undecided)
        elif reason := _waits_for(found):
            is_asked = any(one.state == ScreeningState.WAITING for one in found)
            delay_s = application.ASK_AGAIN_S if is_asked else _LOOK_AGAIN_S
            transitions.give_back(session, lease, reason, settings, delay_s)
            return [], reason
    if fault is not None:
        raise ScreeningUnavailable(fault)
    refused = [_refuse(good[one.sha256], one.reason) for one in found if one.state == ScreeningState.REFUSED]
    return refused, None


def _ask_for(session: Session, name: str, job: Job, hashes: Sequence[str], now: datetime) -> list[Screening]:
    """The verdicts on these pictures of the job; the screener is asked about those without one."""
    for sha256 in sorted(hashes):
        insert_if_absent(session, Screening(sha256=sha256))
    query = select(Screening).where(col(Screening.sha256).in_(hashes)).order_by(col(Screening.sha256))
    found = list(session.exec(query.with_for_update()))
    for one in found:
        if one.state in _UNDECIDED and is_abandoned(session, _waiting_jobs(one.sha256), one.asked_at, job):
            _begin_anew(session, one, job, now)
        if one.state == ScreeningState.WAITING and application.is_due(name, one.changed_at, one.asked_at, now):
            one.asked_at = now
            session.add(one)
            outbox.put(session, "launch", job_id=None, topic=TOPIC, payload={"sha256": one.sha256})
    return found


def _begin_anew(session: Session, one: Screening, job: Job, now: datetime) -> None:
    """Give the job that found an abandoned question the whole patience, and ask again."""
    one.changed_at, one.asked_at = now, None
    if one.state == ScreeningState.HELD:
        one.asked_at = now  # the screener has answered: now a person is asked
        _alert(session, job.id)
    session.add(one)


def _alert(session: Session, job_id: str) -> None:
    channels.alert(session, "screening", f"a picture of {job_id} waits for your decision (operators' page)")


def _overdue(found: Sequence[Screening], settings: Settings) -> str | None:
    now = utcnow()
    patience, hold = timedelta(seconds=settings.screen_patience_s), timedelta(seconds=settings.screen_hold_s)
    if any(one.state == ScreeningState.WAITING and one.changed_at < now - patience for one in found):
        return f"the pictures could not be screened: no verdict in {settings.screen_patience_s:.0f} s"
    if any(one.state == ScreeningState.HELD and one.changed_at < now - hold for one in found):
        return f"a picture was held for a person, who did not decide in {settings.screen_hold_s / 3600:.0f} h"
    return None


def _waits_for(found: Sequence[Screening]) -> str | None:
    states = [one.state for one in found]
    if waiting := states.count(ScreeningState.WAITING):
        return f"{waiting} picture(s) are being screened"
    if held := states.count(ScreeningState.HELD):
        return f"{held} picture(s) wait for a person's decision"
    return None


def _refuse(row: JobPicture, reason: str | None) -> JobPicture:
    row.state, row.faults = PictureState.BAD, ["refused"]
    error = reason or "the screening refused it"
    row.report = (row.report or StoredReport()).model_copy(update={"error": error, "bad": ["refused"]})
    return row


# ---- asking ---------------------------------------------------------------------------------------------------


def ask(services: Services, sha256: str, send_task: SendTask) -> None:
    """Ask the screener about one picture. If it does not answer, the dataset stage asks again."""
    name, picture = services.settings.screen_task, _question(services, sha256)
    if name is None or picture is None:
        return
    try:
        if "://" not in name:
            send_task(name, services.settings.screen_queue, picture, (sha256,))
            return
        given = application.ask(
            name, picture, f"screen_{sha256}", secrets=services.webhook_secrets,
            timeout_s=services.settings.webhook_timeout_s,
        )  # fmt: skip
        answer(services, given, sha256)
    except Unreachable as error:
        log.warning("a picture is not screened yet: %s", error.message)


def answer(services: Services, given: Any, sha256: str) -> None:
    """Record what a screener's task returned. Raises Unreachable if that is no verdict."""
    _record(services, sha256, screener.parse(given), (ScreeningState.WAITING,))


def _question(services: Services, sha256: str) -> PictureQuestion | None:
    """What a screener gets; None if no active job waits for the verdict."""
    with services.database.reading() as session:
        one = session.get(Screening, sha256)
        if one is None or one.state != ScreeningState.WAITING:
            return None
        job = session.exec(_waiting_jobs(sha256).limit(1)).first()
    if job is None:
        return None
    lifetime_s = application.url_lifetime_s(services.settings.screen_patience_s)
    url = services.store.url(keys.prepared(sha256), lifetime_s)
    return PictureQuestion(sha256=sha256, url=url, owner_id=job.owner_id, subject_id=job.subject_id, job_id=job.id)


def _waiting_jobs(sha256: str) -> SelectOfScalar[Job]:
    return select(Job).where(col(Job.status).in_(ACTIVE), uses_picture(sha256)).order_by(col(Job.id))


def _record(services: Services, sha256: str, verdict: ScreeningVerdict, before: Sequence[ScreeningState]) -> bool:
    """Write a verdict if the picture has none yet, and launch the jobs that wait for nothing else."""
    with services.database.writing() as session:
        change = sa.update(Screening).where(col(Screening.sha256) == sha256, col(Screening.state).in_(before))
        values = {"state": _STATES[verdict.verdict], "reason": verdict.reason, "changed_at": utcnow()}
        if not session.connection().execute(change.values(**values)).rowcount:
            return False
        jobs = [job.id for job in session.exec(_waiting_jobs(sha256))]
        if verdict.verdict == "hold":
            for job_id in jobs[:1]:
                _alert(session, job_id)
            return True
        undecided = sa.select(col(JobPicture.job_id)).where(
            col(JobPicture.job_id).in_(jobs),
            col(JobPicture.prepared_sha256) == col(Screening.sha256),
            col(Screening.state).in_(_UNDECIDED),
        )
        still = set(session.connection().execute(undecided).scalars())
        outbox.make_due_now(session, [job_id for job_id in jobs if job_id not in still], "launch")
    return True


# ---- for operators --------------------------------------------------------------------------------------------


def list_held(services: Services, limit: int = 100) -> list[HeldPicture]:
    """The pictures that wait for a person, oldest first; those of no active training are left out."""
    held = select(Screening).where(Screening.state == ScreeningState.HELD).order_by(col(Screening.changed_at))
    found = []
    with services.database.reading() as session:
        for one in session.exec(held.limit(limit)).all():
            jobs = session.exec(_waiting_jobs(one.sha256)).all()
            if jobs:
                found.append(
                    HeldPicture(
                        sha256=one.sha256,
                        reason=one.reason,
                        since=one.changed_at,
                        owner_id=jobs[0].owner_id,
                        subject_id=jobs[0].subject_id,
                        job_ids=[job.id for job in jobs],
                    )
                )
    return found


def decide(services: Services, sha256: str, *, accept: bool, reason: str | None = None) -> None:
    """Accept or refuse a held picture. Raises NotFound for one that is not held."""
    verdict = ScreeningVerdict(verdict="accept" if accept else "refuse", reason=(reason or "").strip()[:500] or None)
    if not _record(services, sha256, verdict, (ScreeningState.HELD,)):
        raise NotFound(f"no picture {sha256} waits for a decision")
    with services.database.writing() as session:
        audit_log.record(session, "picture.accepted" if accept else "picture.refused", sha256=sha256)


def held_picture(services: Services, sha256: str) -> bytes:
    """A held picture as PNG. Raises NotFound for any other."""
    with services.database.reading() as session:
        one = session.get(Screening, sha256)
    if one is None or one.state != ScreeningState.HELD:
        raise NotFound(f"no picture {sha256} waits for a decision")
    return services.store.get(keys.prepared(sha256))
