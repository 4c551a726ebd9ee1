"""The tables of limits and of the audit log."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from core.json_column import JsonColumn
from storage.tables.columns import time_column


class UsageLimit(SQLModel, table=True):
    """What an owner or a token may use at most; replaces the setting."""

    __tablename__ = "usage_limit"
    __table_args__ = (
        sa.Index("uq_usage_limit_owner", "owner_id", "name", unique=True),
        sa.Index("uq_usage_limit_token", "token_id", "name", unique=True),
    )

    id: str = Field(primary_key=True)
    owner_id: str | None = None
    token_id: str | None = None
    name: str
    value: int = Field(sa_type=sa.BigInteger)


class AuditEntry(SQLModel, table=True):
    """Who did what. Triggers refuse every change, apart from the name of an owner who is deleted or renamed."""

    __tablename__ = "audit_entry"
    __table_args__ = (
        sa.Index("ix_audit_entry_at", "at"),
        sa.Index("ix_audit_entry_job", "job_id"),
        sa.Index("ix_audit_entry_owner", "owner_id", "at"),
    )

    id: str = Field(primary_key=True)
    at: datetime = Field(sa_column=time_column(nullable=False))
    actor: str
    actor_id: str
    action: str
    job_id: str | None = None
    owner_id: str | None = None
    data: dict[str, Any] = Field(sa_column=sa.Column(JsonColumn(dict[str, Any]), nullable=False))
