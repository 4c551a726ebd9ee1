"""The tables for pictures and subjects."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from core.clock import utcnow
from storage.picture_report import StoredReport
from storage.tables.columns import json_column, time_column


class StoredPicture(SQLModel, table=True):
    """A picture that an owner has uploaded. Requests name it by its id."""

    __tablename__ = "picture"

    id: str = Field(primary_key=True)
    owner_id: str = Field(index=True)
    subject_id: str
    sha256: str = Field(index=True)
    key: str
    size_bytes: int = Field(sa_type=sa.BigInteger)
    name: str | None = None  # of the file that it came from
    caption: str | None = None
    # The quality report; None until the picture has been checked.
    report: StoredReport | None = Field(default=None, sa_column=json_column(StoredReport))
    preview_key: str | None = Field(default=None, index=True)  # of the thumbnail
    # The part that its owner wants trained, as shares of width and height: left, top, right, bottom. None: the whole.
    crop: list[float] | None = Field(default=None, sa_column=json_column(list[float]))
    # A mask for another picture. Masks are not trained on.
    is_mask: bool = Field(default=False, sa_column_kwargs={"server_default": sa.false()})
    created_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
    removed_at: datetime | None = Field(default=None, sa_column=time_column())  # by its owner; jobs keep using it


class Subject(SQLModel, table=True):
    """What an owner wants to train: a character, a person, a product or a style, with its settings."""

    __tablename__ = "subject"

    owner_id: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    trigger_word: str | None = None
    class_word: str | None = None
    base_model: str | None = None
    webhook_url: str | None = None
    # Other fields of a TrainSpec that its trainings use, where a request does not say otherwise.
    recipe: dict[str, Any] | None = Field(default=None, sa_column=json_column(dict[str, Any]))
    train_automatically: bool = False
    # What was noted about the files of its uploads, until the owner dismisses it.
    notes: list[str] | None = Field(default=None, sa_column=json_column(list[str]))
    profile_sets: int = 0  # how often the profile set was reported as complete; each report starts at most one training
    updated_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))


class PreparedPicture(SQLModel, table=True):
    """A source file prepared for one recipe (resolution, cropping, mask), once for all jobs that use it."""

    __tablename__ = "prepared_picture"

    source_sha256: str = Field(primary_key=True)
    recipe: str = Field(primary_key=True)
    key: str | None = None  # of the PNG in the store; None if the file cannot be decoded
    sha256: str | None = Field(default=None, index=True)  # of the PNG
    width: int = 0
    height: int = 0
    # The quality report, or why the file cannot be decoded.
    report: StoredReport = Field(sa_column=json_column(StoredReport, nullable=False))
    created_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
