"""The outbox, and who wants nothing from it any more."""

from datetime import datetime

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from core.clock import UtcDateTime

KINDS = ("launch", "notice", "cleanup", "mail", "alert")
_WAITING = sa.text("sent_at IS NULL AND dead_at IS NULL")


class OutboxMessage(SQLModel, table=True):
    """One message. It waits until it is sent, or dead: given up, or overtaken by a later one.

    `id` is the same in every attempt. `sequence` counts a job's messages from 1; `topic` says which of its
    kind this is (a notice's event); `destination` is where it goes, so that one slow receiver can be told
    apart from the others. Until `claimed_until` a relay may be sending it. `payload` is JSON.
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
    )

    id: str = Field(primary_key=True, sa_type=sa.Text)
    kind: str = Field(sa_type=sa.Text)
    topic: str = Field(sa_type=sa.Text)
    job_id: str | None = Field(sa_type=sa.Text)
    owner_id: str | None = Field(sa_type=sa.Text)
    destination: str | None = Field(sa_type=sa.Text)
    sequence: int = Field(sa_type=sa.BigInteger)
    payload: str = Field(sa_type=sa.Text)
    created_at: datetime = Field(sa_type=UtcDateTime)
    due_at: datetime = Field(sa_type=UtcDateTime)
    claimed_until: datetime | None = Field(sa_type=UtcDateTime)
    attempts: int = Field(sa_type=sa.BigInteger)
    sent_at: datetime | None = Field(sa_type=UtcDateTime)
    dead_at: datetime | None = Field(sa_type=UtcDateTime)
    last_error: str | None = Field(sa_type=sa.Text)


class DisabledReceiver(SQLModel, table=True):
    """A receiver of one owner that answered 410 Gone: it gets nothing until an operator enables it again."""

    __tablename__ = "disabled_receiver"

    owner_id: str = Field(primary_key=True, sa_type=sa.Text)
    destination: str = Field(primary_key=True, sa_type=sa.Text)
    reason: str = Field(sa_type=sa.Text)
    disabled_at: datetime = Field(sa_type=UtcDateTime)


class NoticePreferences(SQLModel, table=True):
    """How an owner wants to be told, besides webhooks; an owner without a row is told by webhook alone."""

    __tablename__ = "notice_preferences"

    owner_id: str = Field(primary_key=True, sa_type=sa.Text)
    email: str | None = Field(sa_type=sa.Text)
    events: str = Field(sa_type=sa.Text)  # JSON list of the events that go to the e-mail address
    low_credits: int | None = Field(sa_type=sa.BigInteger)  # tell when fewer than so many are available
    low_told_at: datetime | None = Field(sa_type=UtcDateTime)  # not again until the balance was above it
    updated_at: datetime = Field(sa_type=UtcDateTime)


# The same tables for statements in SQLAlchemy Core.
MESSAGE = SQLModel.metadata.tables["outbox_message"]
PREFERENCES = SQLModel.metadata.tables["notice_preferences"]
RECEIVER = SQLModel.metadata.tables["disabled_receiver"]
