"""The tables for deletions: what is to be deleted, what was deleted, and shared objects that may be unused."""

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from core.clock import utcnow
from storage.tables.columns import time_column


class DeletionKind(StrEnum):
    """What a deletion deletes."""

    PICTURE = "picture"
    SUBJECT = "subject"
    TRAINING = "training"
    OWNER = "owner"


class DeletionState(StrEnum):
    """`waiting` can be undone, until its time has come."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


class Deletion(SQLModel, table=True):
    """A request to delete something, and how far that is. Once it is done, it names no owner and no subject.

    The sweep launches a deletion that is not done after `next_look_at`; until then a worker has it if `leased`.
    """

    __tablename__ = "deletion"
    __table_args__ = (sa.Index("ix_deletion_state", "state", "next_look_at"),)

    id: str = Field(primary_key=True)
    kind: str
    owner_id: str | None = Field(default=None, index=True)
    owner_sha256: str  # of the deletion's id and its owner: who may still ask for it when it is done
    subject_id: str | None = None
    target_id: str | None = None  # of the picture or the training: random, so it is kept
    state: str = DeletionState.WAITING
    note: str | None = None  # what it waits for
    leased: bool = False
    due_at: datetime = Field(sa_column=time_column(nullable=False))
    next_look_at: datetime = Field(sa_column=time_column(nullable=False))
    # A worker that was stopped by the deletion may still write a file; until then the deletion is not done.
    quiet_at: datetime | None = Field(default=None, sa_column=time_column())
    created_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
    finished_at: datetime | None = Field(default=None, sa_column=time_column())


class DeletedTraining(SQLModel, table=True):
    """What is left of a deleted job: its id, which the ledger names, and for a while a hash of its idempotency key."""

    __tablename__ = "deleted_training"

    id: str = Field(primary_key=True)
    key_sha256: str | None = Field(default=None, index=True)
    deletion_id: str | None = Field(default=None, index=True)  # None once that is done
    model_id: str | None = None  # None once the deletion is done
    deleted_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))


class UnusedObject(SQLModel, table=True):
    """A shared object that may have lost its last user. A row with `deleting_since` is being deleted now."""

    __tablename__ = "unused_object"

    key: str = Field(primary_key=True)
    deleting_since: datetime | None = Field(default=None, sa_column=time_column())


class StoredDrawing(SQLModel, table=True):
    """The pictures of one `imprint.generate`: whose they are, and the Celery task whose result names them."""

    __tablename__ = "drawing"

    id: str = Field(primary_key=True)
    owner_id: str = Field(index=True)
    subject_id: str
    job_id: str = Field(index=True)
    task_id: str
    created_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
