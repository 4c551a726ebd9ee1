"""The table for drawings on the devices of workers. Those of ComfyUI are in `deletion_tables.StoredDrawing`.

The pictures of a drawing are in the object store under `jobs.keys.drawing(id)`.
"""

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from pydantic import BaseModel
from sqlmodel import Field, SQLModel

from core.clock import utcnow
from core.json_column import JsonColumn
from storage.tables.columns import time_column


class DrawingStatus(StrEnum):
    """`pending -> drawing -> ready | failed | cancelled`; the last three are final and never change."""

    PENDING = "pending"
    DRAWING = "drawing"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN = (DrawingStatus.PENDING, DrawingStatus.DRAWING)


class DrawnFile(BaseModel):
    """One picture of a drawing that is in the store."""

    number: int  # from 0, in the order of drawing
    seed: int
    with_lora: bool
    sha256: str
    bytes: int


class DrawingRow(SQLModel, table=True):
    """Pictures that an owner asked for, drawn with the LoRA of one training.

    It is deleted with its training (`jobs.drawings.deletion`): cancelled, then its row and the objects with the prefix
    `jobs.keys.drawing(id)`. Its hold (`credit_hold.training_id` is the drawing's id) stays in the ledger, and its id in
    `deleted_training`.
    """

    __tablename__ = "device_drawing"
    __table_args__ = (
        sa.UniqueConstraint("owner_id", "idempotency_key", name="uq_device_drawing_owner_key"),
        sa.Index("ix_device_drawing_job", "job_id", "created_at"),
        sa.Index("ix_device_drawing_status", "status", "next_look_at"),
    )

    id: str = Field(primary_key=True)
    owner_id: str
    job_id: str  # the training whose LoRA is drawn with
    idempotency_key: str | None = None
    request_sha256: str

    family: str
    base_model: str
    prompt: str  # with the trigger word
    strength: float
    seed: int = Field(sa_type=sa.BigInteger)  # of the first picture; each further one has the next
    count: int  # of seeds
    compare: bool  # whether each seed is drawn without the LoRA too
    steps: int  # of one picture
    guidance: float
    width: int
    height: int

    status: str = DrawingStatus.PENDING
    step: int = 0  # of all pictures together
    total_steps: int
    pictures: list[DrawnFile] = Field(
        default_factory=list, sa_column=sa.Column(JsonColumn(list[DrawnFile]), nullable=False)
    )
    failure_code: str | None = None
    failure_message: str | None = None
    waiting_note: str | None = None  # why the last attempt ended

    hold_id: str | None = None  # None: it is free
    charged: int | None = Field(default=None, sa_type=sa.BigInteger)

    # The lease of the worker that draws. The token only grows, so a write with an old token changes nothing.
    lease_token: int = 0
    lease_holder: str | None = None
    lease_until: datetime | None = Field(default=None, sa_column=time_column())
    attempt: int = 0
    launches: int = 0
    next_look_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))

    created_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
    started_at: datetime | None = Field(default=None, sa_column=time_column())
    finished_at: datetime | None = Field(default=None, sa_column=time_column())

    @property
    def to_draw(self) -> list[tuple[int, bool]]:
        """Seed, and whether the LoRA is on, of each picture in the order of drawing."""
        variants = (True, False) if self.compare else (True,)
        return [(self.seed + number, is_on) for number in range(self.count) for is_on in variants]
