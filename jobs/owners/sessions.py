"""Sessions of the page. A session ends when it expires, is ended, or its token expires or is revoked."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.errors import NotFound
from core.ids import new_id
from jobs.owners import audit_log, tokens
from jobs.owners.tokens import Token
from jobs.services import Services
from jobs.view import Time, View
from storage.tables.access import ApiToken, StoredSession

LASTS = timedelta(days=7)
_MAX_BROWSER = 200  # characters
_MAX_LISTED = 500


class SessionView(View):
    """A session that has not ended."""

    id: str
    owner_id: str | None  # None: an operator's
    token_id: str
    token_name: str
    browser: str  # as it named itself
    created_at: Time
    expires_at: Time


@dataclass(frozen=True)
class Credential:
    """What an open connection was let in by: a token, and on the page a session."""

    token_id: str
    session_id: str | None = None


def begin(services: Services, token: Token, owner_id: str | None, browser: str = "") -> str:
    """Begin a session of a valid token; returns its id. Sessions that have expired are removed."""
    session = StoredSession(
        id=new_id("session"),
        token_id=token.id,
        owner_id=owner_id,
        browser="".join(letter for letter in browser if letter.isprintable())[:_MAX_BROWSER],
        expires_at=utcnow() + LASTS,
    )
    with services.database.writing() as database:
        database.connection().execute(sa.delete(StoredSession).where(col(StoredSession.expires_at) < utcnow()))
        database.add(session)
        _log(database, "session.begun", session.owner_id, session.id)
    return session.id


def authenticate(services: Services, session_id: str) -> tuple[Token, str | None] | None:
    """The token of a session and the owner that it acts for; None if the session or its token has ended."""
    query = select(StoredSession, ApiToken).join(ApiToken, col(ApiToken.id) == col(StoredSession.token_id))
    with services.database.reading() as database:
        found = database.exec(query.where(StoredSession.id == session_id)).one_or_none()
    if found is None:
        return None
    session, token = found[0], tokens.token_of(found[1])
    now = utcnow()
    return (token, session.owner_id) if _lasts(session, now) and token.is_valid(now) else None


def _lasts(session: StoredSession, now: datetime) -> bool:
    return session.ended_at is None and session.expires_at > now


def list_sessions(services: Services, owner_id: str | None = None) -> list[SessionView]:
    """The sessions that have not ended, newest first; with `owner_id`, only those that act for this owner."""
    query = select(StoredSession, ApiToken).join(ApiToken, col(ApiToken.id) == col(StoredSession.token_id))
    query = query.where(col(StoredSession.ended_at).is_(None)).order_by(col(StoredSession.created_at).desc())
    if owner_id is not None:
        query = query.where(StoredSession.owner_id == owner_id)
    now = utcnow()
    with services.database.reading() as database:
        rows = database.exec(query.limit(_MAX_LISTED)).all()
    return [
        SessionView(
            id=session.id,
            owner_id=session.owner_id,
            token_id=token.id,
            token_name=token.name,
            browser=session.browser,
            created_at=session.created_at,
            expires_at=session.expires_at,
        )
        for session, token in rows
        if _lasts(session, now) and tokens.token_of(token).is_valid(now)
    ]


def end(services: Services, session_id: str, owner_id: str | None = None) -> None:
    """End a session: the next request with its cookie is refused. Ending it again changes nothing.

    `owner_id` is the caller; None is an operator. Raises NotFound, also for a session of another owner.
    """
    with services.database.writing() as database:
        session = database.get(StoredSession, session_id)
        if session is None or owner_id not in (None, session.owner_id):
            raise NotFound(f"there is no session {session_id}")
        session.ended_at = session.ended_at or utcnow()
        database.add(session)
        _log(database, "session.ended", session.owner_id, session.id)


def end_all(services: Services, owner_id: str | None = None, keep: str | None = None) -> int:
    """End all sessions, or those of one owner, except the session `keep`. Returns how many."""
    change = sa.update(StoredSession).where(
        col(StoredSession.ended_at).is_(None), col(StoredSession.id) != (keep or "")
    )
    if owner_id is not None:
        change = change.where(col(StoredSession.owner_id) == owner_id)
    with services.database.writing() as database:
        ended = change.values(ended_at=utcnow()).returning(col(StoredSession.id), col(StoredSession.owner_id))
        rows = database.connection().execute(ended).all()
        for session_id, of_owner in rows:
            _log(database, "session.ended", of_owner, session_id)
        return len(rows)


def _log(database: Session, action: str, owner_id: str | None, session_id: str) -> None:
    audit_log.record(database, action, owner_id=owner_id, session_id=session_id)


def ended(services: Services, credentials: Collection[Credential]) -> set[Credential]:
    """Those of `credentials` whose token or session is not valid any more."""
    now = utcnow()
    token_ids = {one.token_id for one in credentials}
    session_ids = {one.session_id for one in credentials if one.session_id is not None}
    with services.database.reading() as database:
        rows = database.exec(select(ApiToken).where(col(ApiToken.id).in_(token_ids))).all()
        valid = {row.id for row in rows if tokens.token_of(row).is_valid(now)}
        if session_ids:
            sessions = database.exec(select(StoredSession).where(col(StoredSession.id).in_(session_ids))).all()
            valid |= {session.id for session in sessions if _lasts(session, now)}
    return {one for one in credentials if one.token_id not in valid or (one.session_id or one.token_id) not in valid}
