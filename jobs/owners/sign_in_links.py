"""Links that sign in to the page once, without a token to paste."""

import secrets
from datetime import timedelta

import sqlalchemy as sa
from sqlmodel import col

from core.clock import utcnow
from jobs.owners import tokens
from jobs.owners.tokens import Token
from jobs.services import Services
from storage.tables.access import ApiToken

LASTS = timedelta(hours=1)
_NAME = "sign-in link"
_TOKEN_DAYS = 30  # of the sessions that a link opens
_BYTES = 24


def create(services: Services, owner_id: str) -> str:
    """The secret of a new link for an owner. Raises SpecInvalid.

    Links of the owner that were not used, and their tokens, are revoked: only the newest works.
    """
    secret = secrets.token_urlsafe(_BYTES)
    _, token = tokens.create(services, _NAME, owner_id=owner_id, days=_TOKEN_DAYS)  # nobody learns its secret
    is_unused = (col(ApiToken.owner_id) == token.owner_id, col(ApiToken.link_sha256).is_not(None))
    with services.database.writing() as session:
        session.connection().execute(
            sa.update(ApiToken).where(*is_unused).values(link_sha256=None, revoked_at=utcnow())
        )
        values = {"link_sha256": tokens.hash_of(secret), "link_expires_at": utcnow() + LASTS}
        session.connection().execute(sa.update(ApiToken).where(col(ApiToken.id) == token.id).values(**values))
    return secret


def owner_of(services: Services, secret: str) -> str | None:
    """The owner that an unused link signs in; None if it is unknown, used or expired."""
    with services.database.reading() as session:
        query = sa.select(col(ApiToken.owner_id)).where(*_is_valid(secret))
        return session.connection().execute(query).scalar()


def redeem(services: Services, secret: str) -> Token | None:
    """Use a link up; the token that it signs in with, or None if it is unknown, used or expired."""
    with services.database.writing() as session:
        used = sa.update(ApiToken).where(*_is_valid(secret)).values(link_sha256=None).returning(col(ApiToken.id))
        token_id = session.connection().execute(used).scalar()
        return None if token_id is None else tokens.token_of(session.get_one(ApiToken, token_id))


def _is_valid(secret: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        col(ApiToken.link_sha256) == tokens.hash_of(secret),
        col(ApiToken.link_expires_at) > utcnow(),
        col(ApiToken.revoked_at).is_(None),
    )
