"""Jobs that wait for a server: because none has room, or in the queue of one."""

import random
from collections.abc import Sequence
from datetime import timedelta

from sqlmodel import Session, col, select

from core.clock import utcnow
from core.settings import Settings
from jobs.lifecycle import launches, repair
from jobs.lifecycle.leases import Lease
from jobs.remote import pods
from notifications import outbox
from storage.tables.jobs import ACTIVE, Job, Stage
from storage.tables.remote import PodState, RemoteRun, RentedPod, RunState

# A job that waits for a server tries again after so many polls; a poll that finds room wakes it sooner.
_WAIT_POLLS = 10


def wait_for_server(session: Session, lease: Lease, reason: str, settings: Settings) -> None:
    """Let the job wait until a poll finds a server for it; this is not counted as an attempt.

    A job whose hold has expired fails instead.
    """
    job = session.get_one(Job, lease.job_id, populate_existing=True)
    news = job.waiting_note != reason
    lease.write(
        session, attempt=max(lease.attempt - 1, 0), launches=0, waiting_note=reason, lease_token=lease.token + 1
    )
    if repair.expire_overdue_hold(session, job):
        return
    if news:
        launches.record_event(session, job.id, "waiting", reason=reason)
    delay_s = _WAIT_POLLS * settings.remote_poll_s * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
    launches.queue_launch(session, job, settings, delay_s)


def wake(session: Session, settings: Settings) -> int:
    """Launch jobs that wait for a server: those whose pod is ready, and as many others as a pod could take.

    Not all of them: a hundred jobs that find no room would only occupy the workers.
    """
    query = (
        select(RemoteRun, RentedPod)
        .join(Job, col(Job.id) == col(RemoteRun.job_id))
        .outerjoin(RentedPod, col(RentedPod.id) == col(RemoteRun.pod_id))
        .where(
            col(RemoteRun.state).in_((RunState.SUBMITTING, RunState.COMPLETED)),
            col(Job.status).in_(ACTIVE),
            col(Job.stage) == Stage.TRAIN,
            col(Job.lease_until).is_(None),
        )
        .order_by(col(RemoteRun.created_at))
    )
    waiting = session.exec(query).all()
    placed = [run.job_id for run, pod in waiting if pod is not None and pod.state == PodState.READY]
    others = [run.job_id for run, pod in waiting if pod is None or pods.is_lost(pod)]
    return outbox.make_due_now(session, [*placed, *others[: 2 * settings.pod_jobs_max]], "launch")


def overdue(session: Session, settings: Settings) -> Sequence[str]:
    """The jobs that still wait in a server's queue and are so old that their hold may have expired."""
    query = (
        select(Job.id)
        .join(RemoteRun, col(RemoteRun.job_id) == col(Job.id))
        .where(
            col(Job.status).in_(ACTIVE),
            col(RemoteRun.state) == RunState.SUBMITTED,
            col(RemoteRun.started_at).is_(None),
            col(Job.created_at) < utcnow() - timedelta(days=settings.hold_days),
        )
    )
    return session.exec(query).all()


def end_overdue(session: Session, job_id: str) -> bool:
    """Fail a job of `overdue` if its hold has expired."""
    job = session.get(Job, job_id, with_for_update=True)
    return job is not None and job.status in ACTIVE and repair.expire_overdue_hold(session, job)
