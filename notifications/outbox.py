"""Messages that must reach someone: written with the change they tell, sent afterwards, at least once.

Every function works in the caller's transaction and commits nothing. The sender claims what is due in one
transaction, sends with none open, and records the outcome in another. If it dies in between, the claim runs
out and somebody sends again, under the same message id.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core import tracing
from core.clock import utcnow
from core.ids import new_id
from core.settings import settings
from notifications.tables import MESSAGE

Kind = Literal["launch", "notice", "cleanup", "mail", "alert"]
# Messages that leave Imprint: in order for each job, and few at a time to each destination.
EXTERNAL: tuple[Kind, ...] = ("notice", "mail", "alert")

# In the info of a session whose transaction has made a message due: after its commit, the outbox is sent.
CHANGED = "imprint_outbox"

AT_ONCE = 4  # webhooks on their way to one receiver; to one that failed the last time, a single one
SUPERSEDED = "superseded"  # the error of a message that died because a later one says more
_MAX_ERROR = 500


@dataclass(frozen=True)
class Message:
    """A message as its sender needs it. `attempts` counts the failed ones."""

    id: str
    kind: str
    topic: str
    job_id: str | None
    owner_id: str | None
    destination: str | None
    sequence: int
    payload: dict[str, Any]
    created_at: datetime
    due_at: datetime
    attempts: int


@dataclass(frozen=True)
class DeadLetter:
    """A message that was given up, and why."""

    id: str
    kind: str
    topic: str
    job_id: str | None
    owner_id: str | None
    destination: str | None
    sequence: int
    attempts: int
    reason: str
    dead_at: datetime


def put(
    session: Session,
    kind: Kind,
    *,
    job_id: str | None,
    payload: Mapping[str, Any],
    due_at: datetime | None = None,
    topic: str = "",
    owner_id: str | None = None,
    destination: str | None = None,
) -> str:
    """Write a message with the change that it tells; its id, which stays the same in every attempt.

    `payload` is JSON-serialisable and holds ids, not secrets. Due now unless `due_at` says later. Messages
    of one job are numbered from 1 in the order in which they are put.
    """
    now = utcnow()
    message_id = new_id("msg")
    session.info[CHANGED] = True
    session.execute(
        sa.insert(MESSAGE).values(
            id=message_id,
            kind=kind,
            topic=topic,
            job_id=job_id,
            owner_id=owner_id,
            destination=destination,
            sequence=0 if job_id is None else _next_sequence(session, job_id),
            payload=json.dumps({**tracing.current_headers(), **payload}, ensure_ascii=False, allow_nan=False),
            created_at=now,
            due_at=due_at or now,
            attempts=0,
        )
    )
    return message_id


def trace_of(session: Session, job_id: str) -> dict[str, str]:
    """What the first message of a job carried: the trace of the request that began it, for work that begins again."""
    if not settings().tracing:
        return {}
    first = sa.select(MESSAGE.c.payload).where(MESSAGE.c.job_id == job_id).order_by(MESSAGE.c.sequence).limit(1)
    payload = json.loads(session.execute(first).scalar() or "{}")
    return {tracing.HEADER: payload[tracing.HEADER]} if tracing.HEADER in payload else {}


def due(session: Session, now: datetime, kinds: Iterable[Kind], limit: int = 100) -> list[Message]:
    """Messages to send now. A notice is due only when no earlier one of its job still waits.

    Destinations take turns, and few notices are on their way to the same one, so that a thousand messages to one
    that is down, or slow, leave room for all the others.
    """
    statement = sa.select(*_COLUMNS).where(MESSAGE.c.id.in_(_ready(now, kinds, limit)))
    rows = session.execute(statement.order_by(MESSAGE.c.due_at, MESSAGE.c.job_id, MESSAGE.c.sequence))
    return [_message(row) for row in rows]


def claim(
    session: Session, now: datetime, kinds: Iterable[Kind], limit: int = 100, *, lease: timedelta
) -> list[Message]:
    """Like `due`, and for `lease` the messages are due to nobody else: one message, one relay.

    Call it in a writing transaction. Rows that another relay is claiming at this moment are left to it.
    """
    ready = (
        sa.select(MESSAGE.c.id)
        .where(MESSAGE.c.id.in_(_ready(now, kinds, limit)), *_is_due(now))
        .with_for_update(skip_locked=True)
    )
    ids = session.execute(ready).scalars().all()
    claimed = sa.update(MESSAGE).where(MESSAGE.c.id.in_(ids)).values(claimed_until=now + lease)
    rows = session.execute(claimed.returning(*_COLUMNS))
    return sorted((_message(row) for row in rows), key=lambda message: (message.created_at, message.sequence))


def claim_remaining(
    session: Session, kind: Kind, destination: str, now: datetime, *, lease: timedelta
) -> list[Message]:
    """Claim all that still waits for a destination, due or not, to be told in one; oldest first."""
    rest = sa.select(MESSAGE.c.id).where(MESSAGE.c.kind == kind, MESSAGE.c.destination == destination)
    ids = session.execute(rest.where(_WAITING, _is_unclaimed(now)).with_for_update(skip_locked=True)).scalars().all()
    claimed = sa.update(MESSAGE).where(MESSAGE.c.id.in_(ids)).values(claimed_until=now + lease)
    rows = session.execute(claimed.returning(*_COLUMNS))
    return sorted((_message(row) for row in rows), key=lambda message: (message.created_at, message.id))


def last_sent(session: Session, destination: str) -> datetime | None:
    """When something last reached a destination."""
    newest = sa.select(MESSAGE.c.sent_at).where(MESSAGE.c.destination == destination, MESSAGE.c.sent_at.is_not(None))
    found: datetime | None = session.execute(newest.order_by(MESSAGE.c.sent_at.desc()).limit(1)).scalar()
    return found


def unclaim(session: Session, message_ids: Sequence[str]) -> None:
    """Give up a claim on messages that were not handed on: they are due to others again, as they were before."""
    statement = sa.update(MESSAGE).where(MESSAGE.c.id.in_(message_ids), _WAITING)
    session.execute(statement.values(claimed_until=None))


def find(session: Session, message_id: str) -> Message | None:
    """A message that still waits; None for one that was sent, given up or never there."""
    row = session.execute(sa.select(*_COLUMNS).where(MESSAGE.c.id == message_id, _WAITING)).one_or_none()
    return None if row is None else _message(row)


def get(session: Session, message_id: str) -> Message | None:
    """A message, whatever became of it."""
    row = session.execute(sa.select(*_COLUMNS).where(MESSAGE.c.id == message_id)).one_or_none()
    return None if row is None else _message(row)


def mark_sent(session: Session, message_id: str, now: datetime | None = None) -> bool:
    """Record that a message reached its receiver; False if that was recorded before."""
    # Also of a message given up while it was on its way: what happened is what is kept.
    statement = sa.update(MESSAGE).where(MESSAGE.c.id == message_id, MESSAGE.c.sent_at.is_(None))
    change = {"sent_at": now or utcnow(), "dead_at": None, "last_error": None, "claimed_until": None}
    return _ended(session, statement.values(**change))


def mark_failed(
    session: Session, message_id: str, error: str, next_due: datetime | None, now: datetime | None = None
) -> bool:
    """Record a failed attempt: due again at `next_due`, or dead if that is None; False if it waits no more.

    `error` is ours, never a foreign body; it is cut to 500 characters.
    """
    change: dict[str, Any] = {"due_at": next_due} if next_due else {"dead_at": now or utcnow()}
    change |= {"attempts": MESSAGE.c.attempts + 1, "last_error": error[:_MAX_ERROR], "claimed_until": None}
    return _ended(session, sa.update(MESSAGE).where(MESSAGE.c.id == message_id, _WAITING).values(**change))


def make_due_now(session: Session, job_ids: Iterable[str], kind: Kind, now: datetime | None = None) -> int:
    """Make messages of these jobs that wait for a later time due now; how many those were."""
    now = now or utcnow()
    sooner = sa.update(MESSAGE).where(
        MESSAGE.c.job_id.in_(list(job_ids)),
        MESSAGE.c.kind == kind,
        MESSAGE.c.due_at > now,
        _WAITING,
        _is_unclaimed(now),
    )
    session.info[CHANGED] = True
    return len(session.execute(sooner.values(due_at=now).returning(MESSAGE.c.id)).all())


def drop_unsent(
    session: Session,
    job_id: str,
    kinds: Iterable[Kind],
    topic: str | None = None,
    *,
    reason: str = SUPERSEDED,
    now: datetime | None = None,
) -> int:
    """Give up what still waits of a job's messages of these kinds (and topic); how many those were.

    One that a relay may be sending at this moment is left: else a later message could overtake it.
    """
    whose = [MESSAGE.c.job_id == job_id, MESSAGE.c.kind.in_(list(kinds))]
    if topic is not None:
        whose.append(MESSAGE.c.topic == topic)
    return _drop(session, whose, reason, now or utcnow())


def drop_destination(
    session: Session, destination: str, owner_id: str | None, *, reason: str, now: datetime | None = None
) -> int:
    """Give up an owner's waiting messages to a receiver that wants no more of them; how many those were."""
    whose = [MESSAGE.c.destination == destination, MESSAGE.c.owner_id.is_not_distinct_from(owner_id)]
    return _drop(session, whose, reason, now or utcnow())


def postpone_destination(session: Session, destination: str, until: datetime, now: datetime | None = None) -> None:
    """Ask a receiver that is down for nothing before `until`: its other waiting notices are due then."""
    now = now or utcnow()
    whose = MESSAGE.c.destination == destination, MESSAGE.c.kind.in_(EXTERNAL), MESSAGE.c.due_at < until
    _move_due(session, (*whose, _is_unclaimed(now)), until)


def resume_destination(session: Session, destination: str, now: datetime | None = None) -> None:
    """A receiver answers again: notices that were never tried are due now."""
    now = now or utcnow()
    whose = MESSAGE.c.destination == destination, MESSAGE.c.kind.in_(EXTERNAL), MESSAGE.c.due_at > now
    _move_due(session, (*whose, MESSAGE.c.attempts == 0), now)


def postponed_until(session: Session, destination: str, longest: datetime) -> datetime | None:
    """When a receiver that has failed is asked next, `longest` at the latest; None if it has not failed."""
    failed = _WAITING, MESSAGE.c.destination == destination, MESSAGE.c.attempts > 0
    due_at: datetime | None = session.execute(sa.select(sa.func.min(MESSAGE.c.due_at)).where(*failed)).scalar()
    return None if due_at is None else min(due_at, longest)


def is_superseded(session: Session, message: Message | DeadLetter) -> bool:
    """Whether a later message of the same kind was put for the same job."""
    later = sa.select(MESSAGE.c.id).where(MESSAGE.c.job_id == message.job_id, MESSAGE.c.kind == message.kind)
    return session.execute(later.where(MESSAGE.c.sequence > message.sequence).limit(1)).scalar() is not None


def dead_letters(session: Session, limit: int | None = 100) -> list[DeadLetter]:
    """Messages that were given up, the newest first; not those that a later one made needless."""
    columns = {name: MESSAGE.c[name] for name in DeadLetter.__dataclass_fields__ if name != "reason"}
    query = sa.select(*columns.values(), MESSAGE.c.last_error.label("reason"))
    query = query.where(MESSAGE.c.dead_at.is_not(None), MESSAGE.c.last_error != SUPERSEDED)
    query = query.order_by(MESSAGE.c.dead_at.desc(), MESSAGE.c.sequence.desc()).limit(limit)
    return [DeadLetter(**row._mapping) for row in session.execute(query)]


def count_dead(session: Session) -> int:
    """How many messages were given up; not those that a later one made needless."""
    dead = sa.select(sa.func.count()).where(
        MESSAGE.c.dead_at.is_not(None), MESSAGE.c.last_error.is_distinct_from(SUPERSEDED)
    )
    return int(session.execute(dead).scalar_one())


def redeliver(session: Session, message_id: str, now: datetime | None = None) -> bool:
    """Make a message due now, from its first attempt on; False if there is none, or a relay may be sending it."""
    now = now or utcnow()
    statement = sa.update(MESSAGE).where(MESSAGE.c.id == message_id, _is_unclaimed(now))
    change = {"due_at": now, "attempts": 0, "sent_at": None, "dead_at": None, "claimed_until": None}
    session.info[CHANGED] = True
    return session.execute(statement.values(**change).returning(MESSAGE.c.id)).scalar() is not None


_WAITING = sa.and_(MESSAGE.c.sent_at.is_(None), MESSAGE.c.dead_at.is_(None))
_COLUMNS = [MESSAGE.c[name] for name in Message.__dataclass_fields__]


def _ended(session: Session, statement: sa.Update) -> bool:
    """Record how an attempt ended; a notice may have kept the next one of its job or receiver waiting."""
    kind = session.execute(statement.returning(MESSAGE.c.kind)).scalar()
    if kind in EXTERNAL:
        session.info[CHANGED] = True
    return kind is not None


def _is_unclaimed(now: datetime) -> sa.ColumnElement[bool]:
    return sa.or_(MESSAGE.c.claimed_until.is_(None), MESSAGE.c.claimed_until <= now)


def _is_due(now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return _WAITING, MESSAGE.c.due_at <= now, _is_unclaimed(now)


def _ready(now: datetime, kinds: Iterable[Kind], limit: int) -> sa.Select[tuple[Any]]:
    """The ids of `limit` messages that are due, the destinations taking turns."""
    earlier = MESSAGE.alias("earlier")
    waits_for_another = (
        sa.exists()
        .where(earlier.c.job_id == MESSAGE.c.job_id, earlier.c.kind == MESSAGE.c.kind)
        .where(earlier.c.sequence < MESSAGE.c.sequence)
        .where(earlier.c.sent_at.is_(None), earlier.c.dead_at.is_(None))
    )
    turn = sa.func.row_number().over(
        partition_by=MESSAGE.c.destination, order_by=(MESSAGE.c.due_at, MESSAGE.c.sequence)
    )
    traffic = _traffic(now)
    ready = (
        sa.select(MESSAGE.c.id, MESSAGE.c.due_at, turn.label("turn"), traffic.c.room)
        .outerjoin(traffic, sa.and_(MESSAGE.c.kind.in_(EXTERNAL), traffic.c.destination == MESSAGE.c.destination))
        .where(*_is_due(now), MESSAGE.c.kind.in_(list(kinds)))
        .where(sa.or_(MESSAGE.c.kind.not_in(EXTERNAL), sa.not_(waits_for_another)))
        .subquery()
    )
    has_room = sa.or_(ready.c.room.is_(None), ready.c.turn <= ready.c.room)
    return sa.select(ready.c.id).where(has_room).order_by(ready.c.turn, ready.c.due_at).limit(limit)


def _traffic(now: datetime) -> sa.Subquery:
    """How many more notices may be on their way to each receiver that some wait for."""
    on_their_way = sa.func.sum(sa.case((MESSAGE.c.claimed_until > now, 1), else_=0))
    # Mails share one server and alerts one channel: one at a time, so that a dead one keeps no worker from webhooks.
    one = sa.or_(sa.func.max(MESSAGE.c.attempts) > 0, sa.func.min(MESSAGE.c.kind) != "notice")
    at_once = sa.case((one, 1), else_=AT_ONCE)
    waiting = sa.select(MESSAGE.c.destination, (at_once - on_their_way).label("room"))
    waiting = waiting.where(_WAITING, MESSAGE.c.kind.in_(EXTERNAL), MESSAGE.c.destination.is_not(None))
    return waiting.group_by(MESSAGE.c.destination).subquery()


def _move_due(session: Session, whose: tuple[sa.ColumnElement[bool], ...], due_at: datetime) -> None:
    # Rows that another transaction has in hand are left to it: it may be doing the same in another order.
    rows = sa.select(MESSAGE.c.id).where(_WAITING, *whose).with_for_update(skip_locked=True)
    ids = session.execute(rows).scalars().all()
    session.execute(sa.update(MESSAGE).where(MESSAGE.c.id.in_(ids)).values(due_at=due_at))


def _next_sequence(session: Session, job_id: str) -> int:
    if session.get_bind().dialect.name == "postgresql":
        # Two transactions that number the same job's messages queue here instead of colliding; SQLite's
        # transactions queue anyway.
        session.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:job_id, 0))"), {"job_id": job_id})
    last = sa.select(sa.func.max(MESSAGE.c.sequence)).where(MESSAGE.c.job_id == job_id)
    return int(session.execute(last).scalar() or 0) + 1


def _drop(session: Session, whose: list[sa.ColumnElement[bool]], reason: str, now: datetime) -> int:
    dropped = sa.update(MESSAGE).where(*whose, _WAITING, _is_unclaimed(now))
    dropped = dropped.values(dead_at=now, last_error=reason[:_MAX_ERROR])
    return len(session.execute(dropped.returning(MESSAGE.c.id)).all())


def _message(row: sa.Row[Any]) -> Message:
    fields = dict(row._mapping)
    return Message(**{**fields, "payload": json.loads(fields["payload"])})
