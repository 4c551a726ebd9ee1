"""Another attempt later: a worker releases its lease, and the job or the picture waits for the next one."""

import random
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from core.clock import utcnow
from core.errors import ImprintError
from core.settings import Settings
from jobs.lifecycle.launches import queue_launch, record_event
from jobs.lifecycle.leases import Lease
from storage.tables.jobs import ACTIVE, Job, JobPicture

LONGEST_FETCH_DELAY_S = 60.0


def postpone(session: Session, lease: Lease, error: ImprintError, settings: Settings) -> float | None:
    """Release the lease for another attempt; returns the delay in seconds (exponential, with jitter)."""
    delay_s: float = settings.retry_base_s * 2 ** (lease.attempt - 1) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
    values: dict[str, Any] = {"lease_holder": None, "lease_until": None}
    if lease.position is None:
        values["next_look_at"] = utcnow() + timedelta(seconds=delay_s + settings.relaunch_after_s)
        values["waiting_note"] = error.message
    lease.write(session, **values)
    record_event(
        session, lease.job_id, "retry", stage=lease.stage, attempt=lease.attempt,
        reason=error.message, delay_s=round(delay_s, 1),
    )  # fmt: skip
    return delay_s


def postpone_picture(session: Session, lease: Lease, error: ImprintError, settings: Settings) -> float | None:
    """Release the lease of a picture that cannot be fetched now; returns the delay of the next attempt in seconds.

    None, and nothing is written, if `fetch_patience_s` is over. The delays double until a minute, or are as long as the
    error says that no attempt will help. The attempt does not count: attempts count the workers that died with the
    picture.
    """
    now = utcnow()
    picture = session.get_one(JobPicture, (lease.job_id, lease.position), populate_existing=True)
    if is_patience_over(picture, settings):
        return None
    since = picture.unreachable_since or now
    waited_s = (now - since).total_seconds()
    delay_s = min(max(waited_s, settings.retry_base_s), LONGEST_FETCH_DELAY_S) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
    delay_s = min(max(delay_s, error.retry_after_s), settings.fetch_patience_s - waited_s)
    # The job first, then its picture: `repair_job` locks them in this order too.
    check_at = now + timedelta(seconds=delay_s + settings.relaunch_after_s)
    session.connection().execute(
        sa.update(Job)
        .where(col(Job.id) == lease.job_id, col(Job.status).in_(ACTIVE))
        .values(next_look_at=check_at, waiting_note=error.message)
    )
    lease.write(
        session, lease_holder=None, lease_until=None, attempt=max(lease.attempt - 1, 0), unreachable_since=since
    )
    if since == now:  # once for each picture: a hundred pictures in an hour would be thousands of events
        record_event(session, lease.job_id, "retry", stage=lease.stage, reason=error.message, delay_s=round(delay_s, 1))
    return delay_s


def is_patience_over(picture: JobPicture, settings: Settings) -> bool:
    """Whether the picture's server has not answered for `fetch_patience_s`."""
    since = picture.unreachable_since
    return since is not None and (utcnow() - since).total_seconds() >= settings.fetch_patience_s


def hand_over(session: Session, lease: Lease, settings: Settings, reason: str) -> None:
    """Release the lease of a worker that cannot continue. The attempt does not count; another worker gets the job."""
    lease.write(session, attempt=max(lease.attempt - 1, 0))
    job = session.get_one(Job, lease.job_id, populate_existing=True)
    queue_launch(session, job, settings)
    record_event(session, lease.job_id, "retry", stage=lease.stage, reason=reason, delay_s=0)
