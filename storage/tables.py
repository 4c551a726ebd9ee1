"""What the database keeps of pictures and jobs. Money is in `credits/`, messages are in `notifications/`."""

from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from core.clock import UtcDateTime, utcnow


class Status(StrEnum):
    """`pending -> training -> ready | failed | cancelled`; the last three are final and never change."""

    PENDING = "pending"
    TRAINING = "training"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE = (Status.PENDING, Status.TRAINING)


class Stage(StrEnum):
    """Where in the chain a job stands: the stage that is worked on or waits to be."""

    PREPROCESS = "preprocess"
    DATASET = "dataset"
    TRAIN = "train"
    UPLOAD = "upload"
    SETTLE = "settle"


class PictureState(StrEnum):
    """What became of one picture of a job."""

    WAITING = "waiting"
    GOOD = "good"
    BAD = "bad"


def _time(nullable: bool = True) -> Any:
    return sa.Column(UtcDateTime(), nullable=nullable)


class StoredPicture(SQLModel, table=True):
    """A picture that an owner has stored with us, to be named by its id."""

    __tablename__ = "picture"

    id: str = Field(primary_key=True)
    owner_id: str = Field(index=True)
    subject_id: str
    sha256: str
    key: str
    size_bytes: int = Field(sa_type=sa.BigInteger)
    caption: str | None = None
    report: str | None = None  # JSON: the quality report at the resolution of a first look; None until there was one
    preview_key: str | None = None  # of a small picture for pages
    # Of another picture: not among those that the subject is learnt from.
    is_mask: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})
    created_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    removed_at: datetime | None = Field(default=None, sa_column=_time())  # by its owner; jobs that use it go on


class Subject(SQLModel, table=True):
    """What an owner wants to be learnt: a character, a person, a product, a style; and how to train it."""

    __tablename__ = "subject"

    owner_id: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    trigger_word: str | None = None
    class_word: str | None = None
    base_model: str | None = None
    webhook_url: str | None = None
    train_automatically: bool = False
    profile_sets: int = 0  # how many times its profile set was said to be complete, each training once at most
    updated_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))


class ApiToken(SQLModel, table=True):
    """A bearer token of the HTTP API; the token itself is kept nowhere."""

    __tablename__ = "api_token"

    id: str = Field(primary_key=True)
    sha256: str = Field(unique=True)
    name: str
    owner_id: str | None = Field(default=None, index=True)  # None: a service token, which names the owner in each call
    scopes: str  # separated by spaces: read, train, operate
    created_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    expires_at: datetime | None = Field(default=None, sa_column=_time())
    revoked_at: datetime | None = Field(default=None, sa_column=_time())


class PreparedPicture(SQLModel, table=True):
    """A source file prepared for one recipe (resolution, cropping, mask): done once for all jobs that use it."""

    __tablename__ = "prepared_picture"

    source_sha256: str = Field(primary_key=True)
    recipe: str = Field(primary_key=True)
    key: str | None = None  # of the PNG in the store; None where the file cannot be read
    sha256: str | None = None  # of the PNG
    width: int = 0
    height: int = 0
    report: str  # JSON: the quality report, or why it cannot be read
    created_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))


class Job(SQLModel, table=True):
    """One request to train one LoRA."""

    __tablename__ = "training_job"
    __table_args__ = (
        sa.UniqueConstraint("owner_id", "idempotency_key", name="uq_training_job_owner_key"),
        sa.Index("ix_training_job_owner", "owner_id", "created_at"),
        sa.Index("ix_training_job_status", "status", "next_look_at"),
        sa.Index("ix_training_job_kind", "family", "backend", "resolution", "batch_size", "finished_at"),
    )

    id: str = Field(primary_key=True)
    owner_id: str
    subject_id: str
    idempotency_key: str | None = None
    request_sha256: str
    spec: str  # JSON of a TrainSpec, which `jobs.specs` reads; the four columns below repeat what is queried of it
    family: str = Field(default="", sa_column_kwargs={"server_default": sa.text("''")})
    backend: str = Field(default="", sa_column_kwargs={"server_default": sa.text("''")})
    resolution: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    batch_size: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    webhook_url: str | None = None

    status: str = Status.PENDING
    stage: str = Stage.PREPROCESS
    attempt: int = 0  # of the present stage; 0 before its first
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    validation_loss: float | None = None  # of the last look at held-out pictures; at the end, of what is delivered
    seconds_left: float | None = None
    seconds_per_step: float | None = None

    failure_code: str | None = None
    failure_message: str | None = None
    details: str | None = None  # JSON: what belongs to the failure
    waiting_note: str | None = None  # of an active job: what it waits for, or why its last attempt ended

    hold_id: str | None = None
    charged: int | None = Field(default=None, sa_type=sa.BigInteger)

    # The lease on the present stage. The token only grows: whoever writes with an old one writes nothing.
    lease_token: int = 0
    lease_holder: str | None = None
    lease_until: datetime | None = Field(default=None, sa_column=_time())
    launches: int = 0
    next_look_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))

    dataset_sha256: str | None = None
    lora_sha256: str | None = None
    lora_bytes: int | None = Field(default=None, sa_type=sa.BigInteger)
    lora_key: str | None = None  # once it is uploaded and read back
    train_seconds: float = 0.0
    checkpoint_step: int = 0

    created_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    started_at: datetime | None = Field(default=None, sa_column=_time())
    finished_at: datetime | None = Field(default=None, sa_column=_time())


class JobPicture(SQLModel, table=True):
    """One picture of one job, and what became of it."""

    __tablename__ = "job_picture"

    job_id: str = Field(primary_key=True, foreign_key="training_job.id")
    position: int = Field(primary_key=True)
    reference: str  # an address or the id of a stored picture; may be presigned, so it never leaves the database
    caption: str | None = None
    mask: str | None = None  # a reference of the same kinds
    state: str = PictureState.WAITING
    source_sha256: str | None = None
    source_bytes: int = Field(default=0, sa_type=sa.BigInteger)  # what was fetched for it
    prepared_sha256: str | None = None
    width: int = 0
    height: int = 0
    faults: str = "[]"  # JSON list
    report: str | None = None  # JSON

    lease_token: int = 0
    lease_holder: str | None = None
    lease_until: datetime | None = Field(default=None, sa_column=_time())
    attempt: int = 0


class JobEvent(SQLModel, table=True):
    """What happened to a job, in order: for `--watch`, the loss curve, and later the event stream."""

    __tablename__ = "job_event"
    __table_args__ = (sa.Index("ix_job_event_job", "job_id", "id"),)

    id: int | None = Field(
        default=None,
        sa_column=sa.Column(sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
    )
    job_id: str = Field(foreign_key="training_job.id")
    at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    kind: str  # status, stage, progress, retry
    data: str  # JSON


class RunState(StrEnum):
    """Where one training on a remote server stands, as far as we know."""

    SUBMITTING = "submitting"  # it may or may not be there: look for it by its name first
    SUBMITTED = "submitted"  # it is there, queued or running: the poll looks after it
    COMPLETED = "completed"  # its file waits to be fetched
    ENDED = "ended"  # nothing of it is needed any more; gone from the server once `cleared_at` is set


class RemoteRun(SQLModel, table=True):
    """One attempt to train a job on a remote server. The newest attempt counts; older ones only wait to be cleared."""

    __tablename__ = "remote_run"
    __table_args__ = (sa.Index("ix_remote_run_state", "state", "cleared_at"),)

    job_id: str = Field(primary_key=True, foreign_key="training_job.id")
    attempt: int = Field(primary_key=True)  # counted from 1 over the whole life of the job
    name: str = Field(unique=True)  # of the job and the dataset on the server: ours, unique, [a-z0-9_]
    pod_id: str | None = Field(default=None, foreign_key="rented_pod.id", index=True)  # None: the fixed server
    remote_id: str | None = None  # the server's own id, once it has told us
    state: str = RunState.SUBMITTING
    status: str = ""  # queued, running or completed, as last seen
    info: str = ""  # what the server says it does
    step: int = 0
    log_offset: int = 0
    previews: int = 0  # samples that were fetched
    moved_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))  # last step or log growth
    missed: int = 0  # polls in a row without an answer
    reason: str | None = None  # why it ended without a file
    cost_microdollars: int = Field(default=0, sa_type=sa.BigInteger)  # of the pod while it worked on this
    created_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    submitted_at: datetime | None = Field(default=None, sa_column=_time())
    started_at: datetime | None = Field(default=None, sa_column=_time())  # first seen at work, out of the queue
    looked_at: datetime | None = Field(default=None, sa_column=_time())  # a poll took it: no other does so soon
    ended_at: datetime | None = Field(default=None, sa_column=_time())
    cleared_at: datetime | None = Field(default=None, sa_column=_time())


class PodState(StrEnum):
    """Where a rented machine stands. A pod that is not gone may cost money."""

    RENTING = "renting"  # asked for; the provider may or may not have made it: look for it by its name
    STARTING = "starting"  # it is there, its server does not answer yet
    READY = "ready"
    CLOSING = "closing"  # to be deleted, whoever gets to it
    GONE = "gone"


class RentedPod(SQLModel, table=True):
    """One machine rented for trainings."""

    __tablename__ = "rented_pod"
    __table_args__ = (sa.Index("ix_rented_pod_state", "state"),)

    id: str = Field(primary_key=True)
    name: str = Field(unique=True)  # at the provider: our prefix and the id
    provider_id: str | None = None
    gpu: str = ""
    family: str = ""  # of base models that it has fetched by now: others would cost a download
    state: str = PodState.RENTING
    url: str | None = None
    cost_microdollars_per_h: int = Field(default=0, sa_type=sa.BigInteger)
    idle_microdollars: int = Field(default=0, sa_type=sa.BigInteger)  # what it cost while no training was on it
    missed: int = 0  # looks in a row at which its server did not answer, once it was ready
    reason: str | None = None  # why it is closing
    created_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))
    asked_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))  # last request to rent it
    accounted_at: datetime = Field(default_factory=utcnow, sa_column=_time(nullable=False))  # cost shared out so far
    ready_at: datetime | None = Field(default=None, sa_column=_time())
    idle_since: datetime | None = Field(default=None, sa_column=_time())
    gone_at: datetime | None = Field(default=None, sa_column=_time())
