"""The waiting messages of one destination: a webhook's receiver, the mail server or an operators' channel."""

from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.clock import utcnow
from notifications import outbox
from notifications.due import has_failed, is_unclaimed
from notifications.messages import COLUMNS, EXTERNAL, WAITING, Kind, Message
from notifications.tables import MESSAGE


def claim(session: Session, kind: Kind, destination: str, now: datetime, *, lease: timedelta) -> list[Message]:
    """Claim all messages that wait for a destination, due or not, to send them as one; oldest first."""
    rest = sa.select(MESSAGE.c.id).where(MESSAGE.c.kind == kind, MESSAGE.c.destination == destination)
    ids = session.execute(rest.where(WAITING, is_unclaimed(now)).with_for_update(skip_locked=True)).scalars().all()
    claimed = sa.update(MESSAGE).where(MESSAGE.c.id.in_(ids)).values(claimed_until=now + lease)
    rows = session.execute(claimed.returning(*COLUMNS))
    return sorted(map(Message.from_row, rows), key=lambda message: (message.created_at, message.id))


def last_sent(session: Session, destination: str) -> datetime | None:
    """When the last message reached a destination."""
    newest = sa.select(MESSAGE.c.sent_at).where(MESSAGE.c.destination == destination, MESSAGE.c.sent_at.is_not(None))
    found: datetime | None = session.execute(newest.order_by(MESSAGE.c.sent_at.desc()).limit(1)).scalar()
    return found


def postpone(session: Session, destination: str, until: datetime, now: datetime | None = None) -> None:
    """A destination is down: its waiting messages are due at `until`, not earlier."""
    whose = MESSAGE.c.destination == destination, MESSAGE.c.kind.in_(EXTERNAL), MESSAGE.c.due_at < until
    _set_due(session, (*whose, is_unclaimed(now or utcnow())), until)


def resume(session: Session, destination: str, now: datetime | None = None) -> None:
    """A destination answers again: messages that were never tried are due now."""
    now = now or utcnow()
    whose = MESSAGE.c.destination == destination, MESSAGE.c.kind.in_(EXTERNAL), MESSAGE.c.due_at > now
    _set_due(session, (*whose, MESSAGE.c.attempts == 0), now)


def postponed_until(session: Session, destination: str, latest: datetime) -> datetime | None:
    """When a destination that failed is tried again, but at most `latest`; None if it did not fail."""
    failed = WAITING, MESSAGE.c.destination == destination, has_failed()
    due_at: datetime | None = session.execute(sa.select(sa.func.min(MESSAGE.c.due_at)).where(*failed)).scalar()
    return None if due_at is None else min(due_at, latest)


def drop(session: Session, destination: str, owner_id: str | None, *, reason: str, now: datetime | None = None) -> int:
    """Give up an owner's waiting messages to a receiver that wants no more. Returns how many there were."""
    whose = MESSAGE.c.destination == destination, MESSAGE.c.owner_id.is_not_distinct_from(owner_id)
    return outbox.give_up(session, whose, reason, now or utcnow())


def _set_due(session: Session, whose: tuple[sa.ColumnElement[bool], ...], due_at: datetime) -> None:
    # Skip rows that another transaction has locked: it may be doing the same in another order.
    rows = sa.select(MESSAGE.c.id).where(WAITING, *whose).with_for_update(skip_locked=True)
    ids = session.execute(rows).scalars().all()
    session.execute(sa.update(MESSAGE).where(MESSAGE.c.id.in_(ids)).values(due_at=due_at))
