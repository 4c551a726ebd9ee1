"""A job's runs on remote servers, one for each attempt, in the database. This module makes no requests.

    submitting -> submitted -> completed -> ended        ended also from any other, with a reason
              <-  after an outage of the server: the worker that submits it again finds it there

While a run is `submitting` or `completed`, a worker changes it under the lease of the job's stage. While it is
`submitted`, no worker holds the job, and only the poll that claimed the run last (`looked_at`) changes it. So of two
callers the second changes nothing, and every change may be tried again.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.errors import ImprintError
from core.settings import Settings
from jobs.lifecycle import launches, transitions
from jobs.lifecycle.leases import Lease
from jobs.remote import pod_costs, pods
from storage.tables.jobs import ACTIVE, Job, Stage
from storage.tables.remote import RemoteRun, RentedPod, RunState
from training.backends.ai_toolkit.work import remote_name

_DYING = timedelta(minutes=2)  # how long a trainer that was stopped may still hold the memory of its card


@dataclass(frozen=True)
class RunProgress:
    """How far a remote training is. What is None is left as it is."""

    step: int
    loss: float | None
    seconds_left: float | None
    seconds_per_step: float | None = None


def newest(session: Session, job_id: str) -> RemoteRun | None:
    """The job's newest run, which is the one that counts."""
    query = select(RemoteRun).where(RemoteRun.job_id == job_id).order_by(col(RemoteRun.attempt).desc()).limit(1)
    return session.exec(query).one_or_none()


def newest_of(session: Session, job_ids: Sequence[str]) -> dict[str, RemoteRun]:
    """The newest run of each of these jobs that has one."""
    if not job_ids:
        return {}
    query = select(RemoteRun).where(col(RemoteRun.job_id).in_(job_ids)).order_by(col(RemoteRun.attempt))
    return {run.job_id: run for run in session.exec(query)}


# ---- under the lease of the job's stage -----------------------------------------------------------------------


def get_or_create(session: Session, lease: Lease, settings: Settings) -> RemoteRun:
    """The run to work on: the newest, or a new one if there is none or it has ended. Its name is stored first."""
    lease.renew(session, settings.lease_s)
    run = newest(session, lease.job_id)
    if run is None or run.state == RunState.ENDED:
        attempt = 1 if run is None else run.attempt + 1
        run = RemoteRun(job_id=lease.job_id, attempt=attempt, name=remote_name(lease.job_id, attempt))
        session.add(run)
        session.flush()
    return run


def assign(lease: Lease, run: RemoteRun, settings: Settings, session: Session, pod: RentedPod | None) -> None:
    """Put a run that is being submitted on a pod, or on the fixed server (None)."""
    lease.renew(session, settings.lease_s)
    pod_id = None if pod is None else pod.id
    _change(session, run, pod_id=pod_id, missed=run.missed if pod_id == run.pod_id else 0)


def record_submitted(session: Session, lease: Lease, run: RemoteRun, remote_id: str, settings: Settings) -> None:
    """Record that the training is on the server: from now on polls follow it, and no worker holds the job."""
    now = utcnow()
    pod_costs.share_out_cost(session, run.pod_id)
    release_job(session, lease, settings)
    is_other = run.remote_id not in (None, remote_id)  # the server has lost the first one
    from_the_start = {"step": 0, "log_offset": 0, "previews": 0} if is_other else {}
    _change(
        session, run, state=RunState.SUBMITTED, remote_id=remote_id, submitted_at=now, moved_at=now, missed=0,
        **from_the_start,
    )  # fmt: skip
    server = pods.server_name(session, run) or pods.FIXED
    launches.record_event(session, run.job_id, "remote", status="submitted", server=server, attempt=run.attempt)


def release_job(session: Session, lease: Lease, settings: Settings) -> None:
    """Release the job at its stage."""
    lease.write(
        session,
        lease_token=lease.token + 1,  # a renewal in progress must not take it again
        attempt=0,
        lease_holder=None,
        lease_until=None,
        waiting_note=None,
        next_look_at=utcnow() + timedelta(seconds=settings.relaunch_after_s),
    )


def record_collected(session: Session, run: RemoteRun) -> None:
    """Record that the file has been fetched: nothing on the server is needed any more."""
    pod_costs.share_out_cost(session, run.pod_id)
    _change(session, run, state=RunState.ENDED, ended_at=utcnow())


def record_late_submission(session: Session, run: RemoteRun) -> None:
    """Record a submission whose worker had lost the job: what it sent to the server is deleted again."""
    again = sa.update(RemoteRun).where(_is(run), col(RemoteRun.state) == RunState.ENDED)
    session.connection().execute(again.values(cleared_at=None))


# ---- what the poll records ------------------------------------------------------------------------------------


def claim_submitted(session: Session, settings: Settings) -> list[RemoteRun]:
    """Claim all submitted runs that no other poll has claimed recently."""
    now = utcnow()
    stale = now - timedelta(seconds=settings.remote_poll_s / 2)
    taken = (
        sa.update(RemoteRun)
        .where(
            col(RemoteRun.state) == RunState.SUBMITTED,
            sa.or_(col(RemoteRun.looked_at).is_(None), col(RemoteRun.looked_at) < stale),
        )
        .values(looked_at=now)
        .returning(RemoteRun)
    )
    return list(session.scalars(taken, execution_options={"populate_existing": True}))


def record(session: Session, run: RemoteRun, progress: RunProgress | None = None, **values: Any) -> bool:
    """Write to a run that continues; `progress` (step, loss, …) is written to the job and its events too."""
    if values.get("status", run.status) != run.status:
        pod_costs.share_out_cost(session, run.pod_id)  # the run that trains pays for the pod, not those that wait
    if not _change(session, run, **values):
        return False
    if progress is not None:
        _record_job_progress(session, run, progress)
    return True


def _record_job_progress(session: Session, run: RemoteRun, progress: RunProgress) -> None:
    known = {name: value for name, value in asdict(progress).items() if value is not None}
    update = sa.update(Job).where(_in_training(run)).values(**known).returning(col(Job.total_steps), col(Job.loss))
    for total, loss in session.connection().execute(update):
        data = {"step": progress.step, "total": total, "loss": loss, "seconds_left": progress.seconds_left}
        launches.record_event(session, run.job_id, "progress", **data)


def record_completed(
    session: Session, run: RemoteRun, settings: Settings, progress: RunProgress, **values: Any
) -> bool:
    """Record that the training is done, and send the rest of the chain."""
    now = utcnow()
    pod_costs.share_out_cost(session, run.pod_id)
    if not _change(session, run, state=RunState.COMPLETED, missed=0, **values):
        return False
    _record_job_progress(session, run, progress)
    began = run.started_at or run.submitted_at or now
    train_seconds = col(Job.train_seconds) + (now - began).total_seconds()
    update = sa.update(Job).where(_in_training(run))
    counted = session.connection().execute(update.values(attempt=0, launches=0, train_seconds=train_seconds)).rowcount
    if counted:
        launches.record_event(session, run.job_id, "remote", status="completed", attempt=run.attempt)
        launches.queue_launch(session, session.get_one(Job, run.job_id, populate_existing=True), settings)
    return True


def give_up(
    session: Session, run: RemoteRun, error: ImprintError, settings: Settings, *, again: bool = True, info: str = ""
) -> bool:
    """End a run without a file. With `again`, and if attempts are left, the job is submitted again; else it fails.

    info: the server's own text, for operators. False if another process has changed the run meanwhile.
    """
    now = utcnow()
    pod_costs.share_out_cost(session, run.pod_id)
    reason = f"{error.message} ({info[:300]})" if info else error.message
    if not _change(session, run, state=RunState.ENDED, reason=reason, ended_at=now):
        return False
    if not again or run.attempt >= settings.max_attempts:
        transitions.fail(session, run.job_id, error)
        return True
    begun_anew = {"attempt": 0, "launches": 0, "step": 0, "loss": None, "seconds_left": None}
    update = (
        sa.update(Job)
        .where(_in_training(run))
        .values(**begun_anew, waiting_note=error.message, lease_token=col(Job.lease_token) + 1)
    )
    if session.connection().execute(update).rowcount:
        delay_s = settings.retry_base_s * 2 ** (run.attempt - 1) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
        launches.record_event(
            session, run.job_id, "retry", stage=Stage.TRAIN, attempt=run.attempt,
            reason=error.message, delay_s=round(delay_s, 1),
        )  # fmt: skip
        launches.queue_launch(session, session.get_one(Job, run.job_id, populate_existing=True), settings, delay_s)
    return True


def look_again(session: Session, run: RemoteRun, error: ImprintError, settings: Settings) -> bool:
    """Let a worker submit a run again whose server does not answer. A training that is still there is left alone.

    So an outage of the server costs no attempt and no steps, unless it lasts. False if another process has changed the
    run meanwhile.
    """
    pod_costs.share_out_cost(session, run.pod_id)
    if not _change(session, run, state=RunState.SUBMITTING, missed=0):
        return False
    update = sa.update(Job).where(_in_training(run))
    waits = {"attempt": 0, "launches": 0, "waiting_note": error.message, "lease_token": col(Job.lease_token) + 1}
    if session.connection().execute(update.values(**waits)).rowcount:
        launches.record_event(session, run.job_id, "waiting", reason=error.message)
        launches.queue_launch(
            session, session.get_one(Job, run.job_id, populate_existing=True), settings, settings.retry_base_s
        )
    return True


def may_fit_again(session: Session, run: RemoteRun, error: ImprintError) -> bool:
    """Whether a run that found too little memory may find more: the first time, and if another was just stopped there.

    A trainer that is told to stop may live for seconds, and keeps the memory of the card.
    """
    earlier = select(RemoteRun.reason).where(RemoteRun.job_id == run.job_id, col(RemoteRun.attempt) < run.attempt)
    is_first = not any((reason or "").startswith(error.message) for reason in session.exec(earlier))
    begun = run.started_at or run.submitted_at or utcnow()
    others = (
        select(RemoteRun.name)
        .where(col(RemoteRun.pod_id).is_not_distinct_from(run.pod_id), RemoteRun.job_id != run.job_id)
        .where(col(RemoteRun.submitted_at).is_not(None), col(RemoteRun.ended_at) > begun - _DYING)
        .limit(1)
    )
    return is_first or session.exec(others).first() is not None


# ---- ended runs on servers ------------------------------------------------------------------------------------


def end_runs_of_final_jobs(session: Session, job_id: str | None = None) -> int:
    """End the runs of final jobs, or of one final job. Returns how many."""
    final = sa.exists().where(col(Job.id) == col(RemoteRun.job_id), col(Job.status).not_in(ACTIVE))
    query = select(RemoteRun).where(col(RemoteRun.state) != RunState.ENDED, final)
    runs = session.exec(query if job_id is None else query.where(RemoteRun.job_id == job_id)).all()
    for pod_id in sorted(
        {run.pod_id for run in runs}, key=str
    ):  # always in the same order, so that two processes cannot deadlock
        pod_costs.share_out_cost(session, pod_id)
    return sum(_change(session, run, state=RunState.ENDED, ended_at=utcnow()) for run in runs)


def uncleared(session: Session, job_id: str | None = None) -> Sequence[RemoteRun]:
    """Ended runs (of one job, or all) that may still be on their server."""
    query = select(RemoteRun).where(col(RemoteRun.state) == RunState.ENDED, col(RemoteRun.cleared_at).is_(None))
    return session.exec(query if job_id is None else query.where(RemoteRun.job_id == job_id)).all()


def record_cleared(session: Session, run: RemoteRun, settings: Settings, *, gone: bool) -> None:
    """Record that a run is deleted from its server (`gone`: the server itself is gone).

    A worker that was submitting the run when it ended may still send its last request, so it is deleted once more then.
    """
    now = utcnow()
    settled = now - timedelta(seconds=2 * settings.lease_s)
    if gone or run.submitted_at is not None or (run.ended_at or now) < settled:
        _change(session, run, cleared_at=now)


def _is(run: RemoteRun) -> sa.ColumnElement[bool]:
    return sa.and_(col(RemoteRun.job_id) == run.job_id, col(RemoteRun.attempt) == run.attempt)


def _in_training(run: RemoteRun) -> sa.ColumnElement[bool]:
    return sa.and_(col(Job.id) == run.job_id, col(Job.stage) == Stage.TRAIN, col(Job.status).in_(ACTIVE))


def _change(session: Session, run: RemoteRun, **values: Any) -> bool:
    """Write to a run if its state is unchanged and no later poll has claimed it. Returns whether it was written."""
    update = sa.update(RemoteRun).where(
        _is(run),
        col(RemoteRun.state) == run.state,
        col(RemoteRun.looked_at).is_not_distinct_from(run.looked_at),
    )
    return session.connection().execute(update.values(**values)).rowcount == 1
