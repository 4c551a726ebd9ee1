"""The tables of admission: the slots of live workers, the shares of owners, and pauses."""

from datetime import datetime

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from core.clock import utcnow
from core.json_column import JsonColumn
from storage.tables.columns import time_column


class TrainingWorker(SQLModel, table=True):
    """A queue that a live training worker takes from, and how many jobs it trains at a time."""

    __tablename__ = "training_worker"

    worker: str = Field(primary_key=True)
    queue: str = Field(primary_key=True)
    slots: int
    device: str = Field(default="", sa_column_kwargs={"server_default": sa.text("''")})
    # The base models of the queue's family by name: `here`, or `download` before the first job. None: not reported.
    bases: dict[str, str] | None = Field(default=None, sa_column=sa.Column(JsonColumn(dict[str, str])))
    draining: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})
    captions: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})  # whether it has a captioner
    seen_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))


class OwnerShare(SQLModel, table=True):
    """What an owner has used of the workers, and its weight.

    Times are Unix times: the statement that decides computes with them in SQL.
    """

    __tablename__ = "owner_share"

    owner_id: str = Field(primary_key=True)
    weight: float = Field(default=1.0, sa_column_kwargs={"server_default": "1"})
    used_s: float = Field(default=0.0, sa_column_kwargs={"server_default": "0"})  # slot seconds, decayed until used_at
    used_at: float = Field(default=0.0, sa_column_kwargs={"server_default": "0"})
    # The last admission in each priority class.
    low_at: float = Field(default=0.0, sa_column_kwargs={"server_default": "0"})
    normal_at: float = Field(default=0.0, sa_column_kwargs={"server_default": "0"})
    high_at: float = Field(default=0.0, sa_column_kwargs={"server_default": "0"})


class AdmissionPause(SQLModel, table=True):
    """A queue, a family or the whole service, in which no job starts for now."""

    __tablename__ = "admission_pause"

    scope: str = Field(primary_key=True)  # `all`, `queue:NAME` or `family:NAME`
    reason: str = ""
    paused_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
