"""The outbox, the Celery tasks that wait for jobs, disabled receivers, and e-mail preferences."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from core.clock import UtcDateTime, utcnow
from core.json_column import JsonText

_WAITING = sa.text("sent_at IS NULL AND dead_at IS NULL")


class OutboxMessage(SQLModel, table=True):
    """One message. It waits until it is sent or dead: given up, or superseded by a later one.

    `id` is the same in every attempt. `sequence` numbers the messages of a job from 1. `topic` divides a kind: for a
    notice it is the event. `destination` is where it goes. Until `claimed_until` a relay may be sending it. `task_id`
    is the Celery task whose result or callback it is.
    """

    __tablename__ = "outbox_message"
    __table_args__ = (
        sa.UniqueConstraint("job_id", "sequence", name="outbox_message_order"),
        sa.Index("outbox_message_due", "kind", "due_at", sqlite_where=_WAITING, postgresql_where=_WAITING),
        sa.Index(
            "outbox_message_waiting",
            "job_id",
            "kind",
            "sequence",
            sqlite_where=_WAITING,
            postgresql_where=_WAITING,
        ),
        sa.Index("outbox_message_task", "task_id"),
    )

    id: str = Field(primary_key=True, sa_type=sa.Text)
    kind: str = Field(sa_type=sa.Text)
    topic: str = Field(sa_type=sa.Text)
    job_id: str | None = Field(sa_type=sa.Text)
    owner_id: str | None = Field(sa_type=sa.Text)
    destination: str | None = Field(sa_type=sa.Text)
    sequence: int = Field(sa_type=sa.BigInteger)
    payload: dict[str, Any] = Field(sa_column=sa.Column(JsonText(dict[str, Any]), nullable=False))
    created_at: datetime = Field(sa_type=UtcDateTime)
    due_at: datetime = Field(sa_type=UtcDateTime)
    claimed_until: datetime | None = Field(sa_type=UtcDateTime)
    attempts: int = Field(sa_type=sa.BigInteger)
    sent_at: datetime | None = Field(sa_type=UtcDateTime)
    dead_at: datetime | None = Field(sa_type=UtcDateTime)
    last_error: str | None = Field(sa_type=sa.Text)
    task_id: str | None = Field(sa_type=sa.Text)


class TaskCall(SQLModel, table=True):
    """A Celery task of an application that asked for a training, and what Celery would do at its end.

    A task that `waits` (`imprint.lora`) ends with its job; any other ends when the job is accepted. Callbacks, error
    callbacks, chain and chord are signatures as in the message of the task.
    """

    __tablename__ = "task_call"

    task_id: str = Field(primary_key=True, sa_type=sa.Text)
    name: str = Field(sa_type=sa.Text)
    job_id: str = Field(sa_type=sa.Text, index=True)
    waits: bool
    callbacks: list[Any] = Field(sa_column=sa.Column(JsonText(list[Any]), nullable=False))
    errbacks: list[Any] = Field(sa_column=sa.Column(JsonText(list[Any]), nullable=False))
    chain: list[Any] = Field(sa_column=sa.Column(JsonText(list[Any]), nullable=False))
    chord: dict[str, Any] | None = Field(sa_column=sa.Column(JsonText(dict[str, Any])))
    root_id: str | None = Field(sa_type=sa.Text)
    parent_id: str | None = Field(sa_type=sa.Text)
    group_id: str | None = Field(sa_type=sa.Text)
    group_index: int | None = Field(sa_type=sa.BigInteger)
    ignore_result: bool
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)


class DisabledReceiver(SQLModel, table=True):
    """A receiver of one owner that answered 410 Gone. It gets nothing until an operator enables it again."""

    __tablename__ = "disabled_receiver"

    owner_id: str = Field(primary_key=True, sa_type=sa.Text)
    destination: str = Field(primary_key=True, sa_type=sa.Text)
    reason: str = Field(sa_type=sa.Text)
    disabled_at: datetime = Field(sa_type=UtcDateTime)


class NoticePreferences(SQLModel, table=True):
    """The e-mails that an owner wants. An owner without a row gets none."""

    __tablename__ = "notice_preferences"

    owner_id: str = Field(primary_key=True, sa_type=sa.Text)
    email: str | None = Field(sa_type=sa.Text)
    # The events to mail.
    events: list[str] = Field(sa_column=sa.Column(JsonText(list[str]), nullable=False))
    low_credits: int | None = Field(sa_type=sa.BigInteger)  # an e-mail is sent when fewer are available
    # When that e-mail was sent; None after the balance was higher again.
    low_told_at: datetime | None = Field(sa_type=UtcDateTime)
    updated_at: datetime = Field(sa_type=UtcDateTime)


# The same tables for statements in SQLAlchemy Core.
MESSAGE = SQLModel.metadata.tables["outbox_message"]
PREFERENCES = SQLModel.metadata.tables["notice_preferences"]
RECEIVER = SQLModel.metadata.tables["disabled_receiver"]
