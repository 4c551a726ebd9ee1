"""The table of changes of captions, so that they can be taken back."""

from datetime import datetime

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from core.clock import utcnow
from core.json_column import JsonColumn
from storage.tables.jobs import time_column


class CaptionChange(SQLModel, table=True):
    """One change of the captions of a subject's pictures, with the captions from before it."""

    __tablename__ = "caption_change"
    __table_args__ = (sa.Index("ix_caption_change_subject", "owner_id", "subject_id", "id"),)

    id: str = Field(primary_key=True)
    owner_id: str
    subject_id: str
    kind: str  # set, replace, prepend, upload
    before: dict[str, str | None] = Field(  # by the picture's id
        sa_column=sa.Column(JsonColumn(dict[str, str | None]), nullable=False)
    )
    created_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
