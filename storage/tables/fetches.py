"""The table for pictures that a worker fetches from addresses."""

from datetime import datetime

import sqlalchemy as sa
from pydantic import BaseModel
from sqlmodel import Field, SQLModel

from core.clock import utcnow
from core.json_column import JsonColumn
from storage.tables.columns import time_column


class FetchResult(BaseModel):
    """The outcome of one address: the id of the stored picture, or why it was refused."""

    picture_id: str = ""
    code: str = ""
    detail: str = ""


class StoredImageFetch(SQLModel, table=True):
    """A request to fetch pictures from addresses. A result is None until its address was tried.

    The sweep looks at a fetch that is not finished after `next_look_at`; until then a worker has it if `leased`.
    """

    __tablename__ = "image_fetch"

    id: str = Field(primary_key=True)
    owner_id: str = Field(index=True)
    subject_id: str
    is_mask: bool = False
    # Empty once it is finished.
    addresses: list[str] = Field(sa_column=sa.Column(JsonColumn(list[str]), nullable=False))
    results: list[FetchResult | None] = Field(sa_column=sa.Column(JsonColumn(list[FetchResult | None]), nullable=False))
    attempt: int = 0
    leased: bool = False
    created_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
    next_look_at: datetime = Field(sa_column=time_column(nullable=False))
    finished_at: datetime | None = Field(default=None, sa_column=time_column())
