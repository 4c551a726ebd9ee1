"""The tables for trainings on remote servers, and for the machines that are rented for them."""

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from core.clock import utcnow
from storage.tables.columns import time_column


class RunState(StrEnum):
    """The state of one training on a remote server, as last seen."""

    SUBMITTING = "submitting"  # may exist on the server or not: look it up by name first
    SUBMITTED = "submitted"  # queued or running on the server; polls follow it
    COMPLETED = "completed"  # its LoRA file is ready to download
    ENDED = "ended"  # no longer needed; removed from the server once `cleared_at` is set


class RemoteRun(SQLModel, table=True):
    """One attempt to train a job on a remote server. Only the newest counts; older ones wait to be removed."""

    __tablename__ = "remote_run"
    __table_args__ = (sa.Index("ix_remote_run_state", "state", "cleared_at"),)

    job_id: str = Field(primary_key=True, foreign_key="training_job.id")
    attempt: int = Field(primary_key=True)  # from 1, over the whole life of the job
    name: str = Field(unique=True)  # of the job and the dataset on the server: unique, [a-z0-9_]
    pod_id: str | None = Field(default=None, foreign_key="rented_pod.id", index=True)  # None: the fixed server
    remote_id: str | None = None  # the server's own id, once known
    state: str = RunState.SUBMITTING
    status: str = ""  # as last seen: queued, running or completed
    info: str = ""  # what the server reports that it is doing
    step: int = 0
    log_offset: int = 0
    previews: int = 0  # samples downloaded so far
    # When the step or the log last moved
    moved_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
    missed: int = 0  # consecutive polls without an answer
    reason: str | None = None  # why the run ended without a file
    cost_microdollars: int = Field(default=0, sa_type=sa.BigInteger)  # cost of the pod while it trained this run
    created_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
    submitted_at: datetime | None = Field(default=None, sa_column=time_column())
    started_at: datetime | None = Field(default=None, sa_column=time_column())  # when a poll first saw it running
    # When a poll last claimed it; others skip it for a while
    looked_at: datetime | None = Field(default=None, sa_column=time_column())
    ended_at: datetime | None = Field(default=None, sa_column=time_column())
    cleared_at: datetime | None = Field(default=None, sa_column=time_column())


class PodState(StrEnum):
    """The state of a rented machine. Every state but `gone` may cost money."""

    RENTING = "renting"  # requested; may exist at the provider or not: look it up by name
    STARTING = "starting"  # the machine exists; its server does not answer yet
    READY = "ready"
    CLOSING = "closing"  # to be deleted by the next worker that checks it
    GONE = "gone"


class RentedPod(SQLModel, table=True):
    """One machine rented for trainings."""

    __tablename__ = "rented_pod"
    __table_args__ = (sa.Index("ix_rented_pod_state", "state"),)

    id: str = Field(primary_key=True)
    name: str = Field(unique=True)  # at the provider: the prefix and this id
    provider_id: str | None = None
    gpu: str = ""
    family: str = ""  # of the base model that it has already downloaded
    state: str = PodState.RENTING
    url: str | None = None
    cost_microdollars_per_h: int = Field(default=0, sa_type=sa.BigInteger)
    idle_microdollars: int = Field(default=0, sa_type=sa.BigInteger)  # cost while it trained nothing
    missed: int = 0  # consecutive checks without an answer, once it was ready
    reason: str | None = None  # why it is closing
    created_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
    # When renting was last requested
    asked_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
    # Costs are assigned to runs up to here
    accounted_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
    ready_at: datetime | None = Field(default=None, sa_column=time_column())
    idle_since: datetime | None = Field(default=None, sa_column=time_column())
    gone_at: datetime | None = Field(default=None, sa_column=time_column())
