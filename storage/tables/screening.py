"""The table for what the application's screener says of prepared pictures."""

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from core.clock import utcnow
from storage.tables.columns import time_column


class ScreeningState(StrEnum):
    """`waiting` for the screener or `held` for a person, until the picture is `accepted` or `refused`."""

    WAITING = "waiting"
    HELD = "held"
    ACCEPTED = "accepted"
    REFUSED = "refused"


class Screening(SQLModel, table=True):
    """The verdict on one prepared picture, by its content: for all trainings, of whatever owner."""

    __tablename__ = "screening"
    __table_args__ = (sa.Index("ix_screening_state", "state"),)

    sha256: str = Field(primary_key=True)  # of the prepared PNG
    state: str = ScreeningState.WAITING
    reason: str | None = None
    asked_at: datetime | None = Field(default=None, sa_column=time_column())
    changed_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
