"""The tables of changes of captions, so that they can be taken back, and of captions that a captioner wrote."""

from datetime import datetime

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from core.clock import utcnow
from core.json_column import JsonColumn
from storage.tables.columns import time_column


class CaptionChange(SQLModel, table=True):
    """One change of the captions of a subject's pictures, with the captions from before it."""

    __tablename__ = "caption_change"
    __table_args__ = (sa.Index("ix_caption_change_subject", "owner_id", "subject_id", "id"),)

    id: str = Field(primary_key=True)
    owner_id: str
    subject_id: str
    kind: str  # set, replace, prepend, upload, auto
    before: dict[str, str | None] = Field(  # by the picture's id
        sa_column=sa.Column(JsonColumn(dict[str, str | None]), nullable=False)
    )
    created_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))


class GeneratedCaption(SQLModel, table=True):
    """What a captioner said of one prepared picture, by the picture's content and the prompt.

    For all trainings of an owner: the prompt names the trigger word, so the text may.
    """

    __tablename__ = "generated_caption"

    owner_id: str = Field(primary_key=True)
    sha256: str = Field(primary_key=True, index=True)  # of the prepared PNG
    prompt_sha256: str = Field(primary_key=True)  # of the captioner and its instruction
    text: str | None = None  # None: an application's captioner was asked and has not answered
    asked_at: datetime | None = Field(default=None, sa_column=time_column())
    created_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
