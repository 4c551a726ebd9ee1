"""The tables for jobs, their pictures and their events."""

from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict
from sqlmodel import Field, SQLModel

from core.clock import utcnow
from storage.picture_report import StoredReport
from storage.tables.columns import json_column, time_column


class Status(StrEnum):
    """`pending -> training -> ready | failed | cancelled`; the last three are final and never change."""

    PENDING = "pending"
    TRAINING = "training"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE = (Status.PENDING, Status.TRAINING)


class Priority(IntEnum):
    """The classes of jobs: a higher one goes first."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


class Stage(StrEnum):
    """The stage of the pipeline that a job is in, or waits for."""

    PREPROCESS = "preprocess"
    CAPTION = "caption"
    REVIEW = "review"
    DATASET = "dataset"
    TRAIN = "train"
    UPLOAD = "upload"
    SETTLE = "settle"


class PictureState(StrEnum):
    """Whether one picture of a job can be used."""

    WAITING = "waiting"
    GOOD = "good"
    BAD = "bad"


class PeriodicRun(SQLModel, table=True):
    """When a periodic task last ran to its end."""

    __tablename__ = "periodic_run"

    name: str = Field(primary_key=True)
    finished_at: datetime = Field(sa_column=time_column(nullable=False))


class EndTask(BaseModel):
    """The application's task that gets the final view of a job, its queue and its other keyword arguments."""

    model_config = ConfigDict(extra="forbid")

    task: str
    queue: str | None = None
    kwargs: dict[str, Any] = {}


# The conditions of partial indexes: SQLite uses one only for a query that has its words. Jobs that wait for their turn,
# jobs that have had it, and jobs of early versions, which nothing admits.
_WAITING = sa.text("admitted_at IS NULL AND queue <> '' AND status IN ('pending', 'training')")
IN_FLIGHT = sa.text("admitted_at IS NOT NULL AND status IN ('pending', 'training')")
WITHOUT_QUEUE = sa.text("admitted_at IS NULL AND queue = '' AND status IN ('pending', 'training')")
_HAS_RATE = sa.text("seconds_per_step IS NOT NULL")
_KIND = ("status", "family", "backend", "resolution", "batch_size")


class Job(SQLModel, table=True):
    """One request to train one LoRA."""

    __tablename__ = "training_job"
    __table_args__ = (
        sa.UniqueConstraint("owner_id", "idempotency_key", name="uq_training_job_owner_key"),
        sa.Index("uq_training_job_report_key", "owner_id", "report_key", unique=True),
        sa.Index("uq_training_job_model", "model_id", unique=True),
        sa.Index("ix_training_job_owner", "owner_id", "created_at"),
        sa.Index("ix_training_job_created", "created_at", "id"),
        sa.Index("ix_training_job_status", "status", "next_look_at"),
        sa.Index("ix_training_job_token", "token_id", "created_at"),
        sa.Index(
            "ix_training_job_waiting", "queue", "priority", "owner_id", "created_at", "id",
            sqlite_where=_WAITING, postgresql_where=_WAITING,
        ),
        sa.Index(
            "ix_training_job_in_flight", "queue", "owner_id",
            sqlite_where=IN_FLIGHT, postgresql_where=IN_FLIGHT,
        ),
        sa.Index(
            "ix_training_job_without_queue", "next_look_at",
            sqlite_where=WITHOUT_QUEUE, postgresql_where=WITHOUT_QUEUE,
        ),
        *(
            sa.Index(name, *_KIND, *columns, sqlite_where=_HAS_RATE, postgresql_where=_HAS_RATE)
            for name, columns in (
                ("ix_training_job_rate", ("finished_at",)), ("ix_training_job_rate_on", ("device", "finished_at")),
            )
        ),
        sa.Index("ix_training_job_dataset", "dataset_sha256"),
        *(
            sa.Index(
                f"ix_training_job_not_{name}", "finished_at",
                sqlite_where=sa.text(f"{name}_at IS NULL"), postgresql_where=sa.text(f"{name}_at IS NULL"),
            )
            for name in ("thinned", "trimmed")
        ),
    )  # fmt: skip

    id: str = Field(primary_key=True)
    owner_id: str
    subject_id: str
    idempotency_key: str | None = None
    # The caller's key of the report that started the job; the idempotency key of such a job is its set of pictures.
    report_key: str | None = None
    request_sha256: str
    # The fields of a TrainSpec, parsed by `jobs.specs`; the four columns below repeat the fields that queries use.
    spec: dict[str, Any] = Field(sa_column=json_column(dict[str, Any], nullable=False))
    family: str = Field(default="", sa_column_kwargs={"server_default": sa.text("''")})
    backend: str = Field(default="", sa_column_kwargs={"server_default": sa.text("''")})
    resolution: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    batch_size: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    # Admission. `queue`: which workers train it; empty for a job of an earlier version, which is not admitted.
    queue: str = Field(default="", sa_column_kwargs={"server_default": sa.text("''")})
    priority: int = Field(default=1, sa_type=sa.SmallInteger, sa_column_kwargs={"server_default": "1"})
    shape: str = Field(default="", sa_column_kwargs={"server_default": sa.text("''")})  # what one step has in common
    expected_s: float = Field(default=0.0, sa_column_kwargs={"server_default": "0"})  # of its train stage
    admitted_at: datetime | None = Field(default=None, sa_column=time_column())  # None: it waits for its turn
    token_id: str | None = None  # of the HTTP API, with which it was started
    webhook_url: str | None = None
    on_end: EndTask | None = Field(default=None, sa_column=json_column(EndTask))
    model_id: str | None = None  # as the request gave it; None: the job's id
    # What notices send back as the request had it; `style_id` is the `subject_id` of a RabbitMQ message.
    reference: dict[str, Any] | None = Field(default=None, sa_column=json_column(dict[str, Any]))
    message_id: str | None = None
    style_id: str | int | None = Field(default=None, sa_column=json_column(str | int))
    # Whether it may train without pictures that stay unreachable, and whether its last notice has a presigned address.
    allow_missing: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})
    model_link: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})
    # Whether the stage `caption` is still to come, and whether the job waits there for its owner.
    needs_captions: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})
    review: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})

    status: str = Status.PENDING
    stage: str = Stage.PREPROCESS
    attempt: int = 0  # at the current stage; 0 before the first
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    validation_loss: float | None = None  # of the last validation; at the end, of the delivered weights
    seconds_left: float | None = None
    seconds_per_step: float | None = None
    device: str = Field(default="", sa_column_kwargs={"server_default": sa.text("''")})  # that it was trained on

    failure_code: str | None = None
    failure_message: str | None = None
    details: dict[str, Any] | None = Field(default=None, sa_column=json_column(dict[str, Any]))  # of the failure
    notes: list[str] | None = Field(default=None, sa_column=json_column(list[str]))  # on its pictures and captions
    waiting_note: str | None = None  # active jobs: what the job waits for, or why its last attempt ended

    hold_id: str | None = None
    charged: int | None = Field(default=None, sa_type=sa.BigInteger)

    # The lease on the current stage. The token only grows, so a write with an old token changes nothing.
    lease_token: int = 0
    lease_holder: str | None = None
    lease_until: datetime | None = Field(default=None, sa_column=time_column())
    launches: int = 0
    # Launches of this stage that ended in an error before a worker had claimed it.
    failed_launches: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    next_look_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))

    dataset_sha256: str | None = None
    lora_sha256: str | None = None
    lora_bytes: int | None = Field(default=None, sa_type=sa.BigInteger)
    readers: dict[str, str] | None = Field(
        default=None, sa_column=json_column(dict[str, str])
    )  # how programs read the file
    lora_key: str | None = None  # set once the upload has been read back
    train_seconds: float = 0.0
    checkpoint_step: int = 0

    created_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
    started_at: datetime | None = Field(default=None, sa_column=time_column())
    finished_at: datetime | None = Field(default=None, sa_column=time_column())
    thinned_at: datetime | None = Field(default=None, sa_column=time_column())  # when retention deleted its pictures
    trimmed_at: datetime | None = Field(default=None, sa_column=time_column())  # when it deleted events and messages

    @property
    def public_model_id(self) -> str:
        """The id of the model in notices, and in the key of its file."""
        return self.model_id or self.id


class JobPicture(SQLModel, table=True):
    """One picture of one job, and the result of preparing it."""

    __tablename__ = "job_picture"
    __table_args__ = (
        sa.Index("ix_job_picture_source", "source_sha256"),
        sa.Index("ix_job_picture_prepared", "prepared_sha256"),
    )

    job_id: str = Field(primary_key=True, foreign_key="training_job.id")
    position: int = Field(primary_key=True)
    reference: str  # an address, or the id of a stored picture; may be presigned, so it never leaves the database
    name: str | None = None  # of its source, for people: never an address
    caption: str | None = None
    mask: str | None = None  # an address or an id too
    crop: list[float] | None = Field(default=None, sa_column=json_column(list[float]))  # as the stored picture's
    state: str = PictureState.WAITING
    source_sha256: str | None = None
    source_bytes: int = Field(default=0, sa_type=sa.BigInteger)  # downloaded for this picture
    prepared_sha256: str | None = None
    width: int = 0
    height: int = 0
    faults: list[str] = Field(default=[], sa_column=json_column(list[str], nullable=False))
    report: StoredReport | None = Field(default=None, sa_column=json_column(StoredReport))

    lease_token: int = 0
    lease_holder: str | None = None
    lease_until: datetime | None = Field(default=None, sa_column=time_column())
    attempt: int = 0
    unreachable_since: datetime | None = Field(default=None, sa_column=time_column())  # None once it has been fetched


class JobEvent(SQLModel, table=True):
    """What happened to a job, in order: for `--watch`, the loss curve and the event stream."""

    __tablename__ = "job_event"
    __table_args__ = (sa.Index("ix_job_event_job", "job_id", "id"),)

    id: int | None = Field(
        default=None,
        sa_column=sa.Column(sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
    )
    job_id: str = Field(foreign_key="training_job.id")
    at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
    kind: str  # status, stage, progress, retry
    data: dict[str, Any] = Field(sa_column=json_column(dict[str, Any], nullable=False))
