"""The tables for access to the HTTP API and the page: tokens and sessions."""

from datetime import datetime

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from core.clock import utcnow
from storage.tables.columns import time_column


class ApiToken(SQLModel, table=True):
    """A bearer token of the HTTP API. Only its hash is stored."""

    __tablename__ = "api_token"
    __table_args__ = (sa.Index("uq_api_token_link", "link_sha256", unique=True),)

    id: str = Field(primary_key=True)
    sha256: str = Field(unique=True)
    name: str
    owner_id: str | None = Field(default=None, index=True)  # None: a service token; each call names the owner
    scopes: str  # space-separated: read, train, priority, view, operate
    # A hash of the provider and its name for the person who signed in by OpenID Connect; such a token has no secret.
    person: str | None = Field(default=None, index=True)
    created_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
    expires_at: datetime | None = Field(default=None, sa_column=time_column())
    revoked_at: datetime | None = Field(default=None, sa_column=time_column())
    # Of the link that signs in with this token once; None when it has been used.
    link_sha256: str | None = None
    link_expires_at: datetime | None = Field(default=None, sa_column=time_column())


class StoredSession(SQLModel, table=True):
    """A session of the page. The cookie names it under a signature, so the row alone opens nothing."""

    __tablename__ = "page_session"

    id: str = Field(primary_key=True)
    token_id: str = Field(foreign_key="api_token.id", index=True)
    owner_id: str | None = Field(default=None, index=True)  # None: an operator's, for no owner
    browser: str = ""  # as it named itself, for the list of sessions
    created_at: datetime = Field(default_factory=utcnow, sa_column=time_column(nullable=False))
    expires_at: datetime = Field(sa_column=time_column(nullable=False))
    ended_at: datetime | None = Field(default=None, sa_column=time_column())
