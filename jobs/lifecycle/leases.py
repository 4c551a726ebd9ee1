"""Leases: workers' claims on stages and pictures. Each claim has a higher token; writes with an old one are refused."""

from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import sqlalchemy as sa
from sqlalchemy.sql.dml import ReturningUpdate
from sqlmodel import Session, col

from core.clock import utcnow
from core.errors import LeaseLost
from storage.tables.jobs import ACTIVE, Job, JobPicture, PictureState, Stage

# What a claim returns is the row as it was written, also if the session has the row already.
_AS_WRITTEN = {"synchronize_session": False, "populate_existing": True}


@dataclass(frozen=True)
class Lease:
    """A claim on one stage of a job, or on one of its pictures."""

    job_id: str
    stage: Stage
    token: int
    attempt: int
    position: int | None = None  # of the picture, in preprocess
    model_id: str = ""  # for the files of a job that is deleted meanwhile; not of a picture's lease

    @property
    def _row(self) -> type[Job] | type[JobPicture]:
        return Job if self.position is None else JobPicture

    @property
    def _parameters(self) -> dict[str, object]:
        """What `_is_current` is executed with."""
        own = {"of_stage": self.stage} if self.position is None else {"of_position": self.position}
        return {"of_job": self.job_id, "of_token": self.token, **own}

    def write(self, session: Session, **values: object) -> None:
        """Write `values`, which may be SQL expressions, to the leased row, or raise LeaseLost and write nothing."""
        computed = {name: value for name, value in values.items() if isinstance(value, sa.ColumnElement)}
        update = _write(self._row).values(**computed) if computed else _write(self._row)
        given = {name: value for name, value in values.items() if name not in computed}
        if session.connection().execute(update, self._parameters | given).rowcount != 1:
            raise LeaseLost(f"{self.job_id} {self.stage}: token {self.token} is not the newest")

    def is_held(self, session: Session) -> bool:
        """Whether a write under this lease would succeed now."""
        return session.connection().execute(_find(self._row), self._parameters).first() is not None

    def renew(self, session: Session, lease_s: float) -> None:
        """Extend the lease by `lease_s` seconds from now. Raises LeaseLost if another claim has replaced it."""
        self.write(session, lease_until=utcnow() + timedelta(seconds=lease_s))


# Statements are built once: to build one takes as long as to execute it, and a job has dozens.


def _is_current(row: type[Job] | type[JobPicture]) -> sa.ColumnElement[bool]:
    """The SQL condition that a lease is still the newest claim on its row."""
    if row is Job:
        return sa.and_(
            col(Job.id) == sa.bindparam("of_job"),
            col(Job.lease_token) == sa.bindparam("of_token"),
            col(Job.stage) == sa.bindparam("of_stage"),
            col(Job.status).in_(ACTIVE),
        )
    return sa.and_(
        col(JobPicture.job_id) == sa.bindparam("of_job"),
        col(JobPicture.position) == sa.bindparam("of_position"),
        col(JobPicture.lease_token) == sa.bindparam("of_token"),
        col(JobPicture.state) == PictureState.WAITING,
        sa.exists().where(col(Job.id) == sa.bindparam("of_job"), col(Job.status).in_(ACTIVE)),
    )


@cache
def _write(row: type[Job] | type[JobPicture]) -> sa.Update:
    return sa.update(row).where(_is_current(row))


@cache
def _find(row: type[Job] | type[JobPicture]) -> sa.Select[int]:
    return sa.select(sa.literal(1)).select_from(row).where(_is_current(row))


def claim_stage(session: Session, job_id: str, stage: Stage, holder: str, lease_s: float) -> tuple[Lease, Job] | None:
    """Claim `stage` of a job that is at this stage and not leased; else None.

    The stage after `preprocess`, which is `caption` or `dataset`, may also be claimed while the job is there, once no
    picture waits; `train` only by a job that is admitted.
    """
    job = session.scalars(_claim_stage(stage), _claim_parameters(job_id, holder, lease_s)).one_or_none()
    if job is None:
        return None
    return Lease(job_id, stage, job.lease_token, job.attempt, model_id=job.public_model_id), job


@cache
def _claim_stage(stage: Stage) -> ReturningUpdate[Job]:
    claim = sa.update(Job).where(col(Job.id) == sa.bindparam("of_job"), col(Job.status).in_(ACTIVE), _is_free(Job))
    if stage in (Stage.CAPTION, Stage.DATASET):
        of_job = col(JobPicture.job_id) == sa.bindparam("of_job")
        waiting = sa.exists().where(of_job, col(JobPicture.state) == PictureState.WAITING)
        claim = claim.where(
            col(Job.stage).in_((Stage.PREPROCESS, stage)), ~waiting,
            col(Job.needs_captions).is_(stage is Stage.CAPTION),
        )  # fmt: skip
    else:
        claim = claim.where(col(Job.stage) == stage)
    if stage is Stage.TRAIN:
        claim = claim.where(sa.or_(col(Job.admitted_at).is_not(None), col(Job.queue) == ""))
    claim = claim.values(
        stage=stage,
        attempt=sa.case((col(Job.stage) == stage, col(Job.attempt) + 1), else_=1),
        lease_token=col(Job.lease_token) + 1,
        lease_holder=sa.bindparam("holder"),
        lease_until=sa.bindparam("until"),
    )
    return claim.returning(Job).execution_options(**_AS_WRITTEN)


def claim_picture(
    session: Session, job_id: str, position: int, holder: str, lease_s: float
) -> tuple[Lease, JobPicture] | None:
    """Claim one waiting picture of an active job; None if it does not wait or is leased."""
    parameters = _claim_parameters(job_id, holder, lease_s) | {"of_position": position}
    picture = session.scalars(_claim_picture(), parameters).one_or_none()
    if picture is None:
        return None
    return Lease(job_id, Stage.PREPROCESS, picture.lease_token, picture.attempt, position), picture


@cache
def _claim_picture() -> ReturningUpdate[JobPicture]:
    claim = sa.update(JobPicture).where(
        col(JobPicture.job_id) == sa.bindparam("of_job"),
        col(JobPicture.position) == sa.bindparam("of_position"),
        col(JobPicture.state) == PictureState.WAITING,
        _is_free(JobPicture),
        sa.exists().where(col(Job.id) == sa.bindparam("of_job"), col(Job.status).in_(ACTIVE)),
    )
    claim = claim.values(
        lease_token=col(JobPicture.lease_token) + 1,
        lease_holder=sa.bindparam("holder"),
        lease_until=sa.bindparam("until"),
        attempt=col(JobPicture.attempt) + 1,
    )
    return claim.returning(JobPicture).execution_options(**_AS_WRITTEN)


def _claim_parameters(job_id: str, holder: str, lease_s: float) -> dict[str, object]:
    now = utcnow()
    return {"of_job": job_id, "now": now, "holder": holder, "until": now + timedelta(seconds=lease_s)}


def _is_free(row: type[Job] | type[JobPicture]) -> sa.ColumnElement[bool]:
    until = col(row.lease_until)
    return sa.or_(until.is_(None), until < sa.bindparam("now"))
