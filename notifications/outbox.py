"""Messages that must be delivered: written in the transaction of the change that they tell, sent at least once.

Every function works in the caller's transaction and commits nothing. The relay claims what is due in one transaction,
sends with no transaction open, and the outcome is recorded in another. If a process dies in between, its claim ends and
the message is sent again under the same id.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from core.clock import utcnow
from core.ids import new_id
from core.settings import settings
from core.telemetry import tracing
from notifications.due import NOW, is_due, is_unclaimed, parameters, ready
from notifications.messages import COLUMNS, EXTERNAL, SUPERSEDED, WAITING, DeadLetter, Kind, Message
from notifications.tables import MESSAGE

# Set in the info of a session whose transaction made a message due: after its commit, the outbox is sent.
CHANGED = "imprint_outbox"
# A message that was handed to a task is sent again if the task has recorded no outcome by then.
CLAIM = timedelta(seconds=60)
_MAX_ERROR = 500
# Statements that are built once: to build one takes as long as to execute it.
_PUT = sa.insert(MESSAGE)
_ID: sa.BindParameter[str] = sa.bindparam("message_id")
_FIND = sa.select(*COLUMNS).where(MESSAGE.c.id == _ID, WAITING)
_KEEP = sa.update(MESSAGE).where(MESSAGE.c.id == _ID, WAITING)
_FAILED = _KEEP.values(attempts=MESSAGE.c.attempts + 1, claimed_until=None).returning(MESSAGE.c.kind)
_UNSENT = sa.update(MESSAGE).where(MESSAGE.c.id == _ID, MESSAGE.c.sent_at.is_(None)).returning(MESSAGE.c.kind)
_LAST = sa.select(sa.func.max(MESSAGE.c.sequence)).where(MESSAGE.c.job_id == sa.bindparam("of_job"))


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
    task_id: str | None = None,
) -> str:
    """Write a message, due now or at `due_at`. Returns its id, which stays the same in every attempt.

    After the commit, the process's OutboxSender has `tasks.relay` hand the messages that are due to Celery tasks.
    `payload` is JSON-serialisable and contains ids, not secrets. The messages of one job are numbered from 1.
    """
    now = utcnow()
    message_id = new_id("msg")
    session.info[CHANGED] = True
    row = {
        "id": message_id,
        "kind": kind,
        "topic": topic,
        "job_id": job_id,
        "owner_id": owner_id,
        "destination": destination,
        "sequence": 0 if job_id is None else _next_sequence(session, job_id),
        "payload": {**tracing.current_headers(), **payload},
        "created_at": now,
        "due_at": due_at or now,
        "attempts": 0,
        "task_id": task_id,
    }
    session.execute(_PUT, row)
    return message_id


def newest(session: Session, job_id: str, kind: Kind) -> str | None:
    """The id of a job's newest message of a kind, in any state."""
    ids = sa.select(MESSAGE.c.id).where(MESSAGE.c.job_id == job_id, MESSAGE.c.kind == kind)
    found: str | None = session.execute(ids.order_by(MESSAGE.c.sequence.desc()).limit(1)).scalar()
    return found


def trace_of(session: Session, job_id: str) -> dict[str, str]:
    """The trace headers in the first message of a job, for work that begins again."""
    if not settings().tracing:
        return {}
    first = sa.select(MESSAGE.c.payload).where(MESSAGE.c.job_id == job_id).order_by(MESSAGE.c.sequence).limit(1)
    payload: Mapping[str, Any] = session.execute(first).scalar() or {}
    return {tracing.HEADER: payload[tracing.HEADER]} if tracing.HEADER in payload else {}


def claim(
    session: Session, now: datetime, kinds: Iterable[Kind], limit: int = 100, *, lease: timedelta
) -> list[Message]:
    """The messages to send now. For the time of `lease`, no other relay gets them. Needs a writing transaction.

    Rows that another relay is claiming at this moment are left to it.
    """
    ids = session.execute(_claimable(), parameters(now, kinds, limit)).scalars().all()
    claimed = sa.update(MESSAGE).where(MESSAGE.c.id.in_(ids)).values(claimed_until=now + lease)
    rows = session.execute(claimed.returning(*COLUMNS)) if ids else ()
    return sorted(map(Message.from_row, rows), key=lambda message: (message.created_at, message.sequence))


@cache
def _claimable() -> sa.Select[tuple[Any]]:
    return sa.select(MESSAGE.c.id).where(MESSAGE.c.id.in_(ready()), *is_due()).with_for_update(skip_locked=True)


def unclaim(session: Session, message_ids: Sequence[str]) -> None:
    """Give up the claim on messages that were not sent: other relays may send them now."""
    statement = sa.update(MESSAGE).where(MESSAGE.c.id.in_(message_ids), WAITING)
    session.execute(statement.values(claimed_until=None))


def keep_claimed(session: Session, message_id: str, until: datetime) -> None:
    """Keep a message from other relays until then: it waits for a worker."""
    session.execute(_KEEP, {"message_id": message_id, "claimed_until": until})


def find(session: Session, message_id: str) -> Message | None:
    """A message that still waits; None if it was sent or given up, or does not exist."""
    row = session.execute(_FIND, {"message_id": message_id}).one_or_none()
    return None if row is None else Message.from_row(row)


def waiting(session: Session, job_id: str, kind: Kind) -> list[Message]:
    """The messages of a job and a kind that wait."""
    rows = session.execute(sa.select(*COLUMNS).where(MESSAGE.c.job_id == job_id, MESSAGE.c.kind == kind, WAITING))
    return [Message.from_row(row) for row in rows]


def get(session: Session, message_id: str) -> Message | None:
    """A message in any state; None if it does not exist."""
    row = session.execute(sa.select(*COLUMNS).where(MESSAGE.c.id == message_id)).one_or_none()
    return None if row is None else Message.from_row(row)


def mark_sent(session: Session, message_id: str, now: datetime | None = None) -> bool:
    """Record that a message was delivered. Returns False if that was recorded before."""
    # Also for a message that was given up while it was being sent: it was delivered nevertheless.
    change = {"sent_at": now or utcnow(), "dead_at": None, "last_error": None, "claimed_until": None}
    return _record_outcome(session, _UNSENT, {"message_id": message_id, **change})


def mark_failed(
    session: Session, message_id: str, error: str, next_due: datetime | None, now: datetime | None = None
) -> bool:
    """Record a failed attempt: the message is due again at `next_due`, or dead if that is None.

    Returns False if the message no longer waits. `error` is our text, never a foreign body, cut to 500 characters.
    """
    change: dict[str, Any] = {"due_at": next_due} if next_due else {"dead_at": now or utcnow()}
    return _record_outcome(session, _FAILED, {"message_id": message_id, "last_error": error[:_MAX_ERROR], **change})


def make_due_now(session: Session, job_ids: Iterable[str], kind: Kind, now: datetime | None = None) -> int:
    """Make the later messages of these jobs due now. Returns how many there were."""
    now = now or utcnow()
    sooner = sa.update(MESSAGE).where(
        MESSAGE.c.job_id.in_(list(job_ids)),
        MESSAGE.c.kind == kind,
        MESSAGE.c.due_at > now,
        WAITING,
        is_unclaimed(now),
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
    """Give up the waiting messages of a job, of these kinds and this topic. Returns how many there were.

    A message that a relay is sending at this moment is left: otherwise a later one could overtake it.
    """
    now = now or utcnow()
    which = {"of_job": job_id, "kinds": list(kinds), "now": now} | ({} if topic is None else {"of_topic": topic})
    change = {"dead_at": now, "last_error": reason[:_MAX_ERROR]}
    return len(session.execute(_unsent_of_job(topic is not None), which | change).all())


@cache
def _unsent_of_job(has_topic: bool) -> ReturningUpdate[tuple[Any]]:
    whose = [MESSAGE.c.job_id == sa.bindparam("of_job"), MESSAGE.c.kind.in_(sa.bindparam("kinds", expanding=True))]
    if has_topic:
        whose.append(MESSAGE.c.topic == sa.bindparam("of_topic"))
    return sa.update(MESSAGE).where(*whose, WAITING, is_unclaimed(NOW)).returning(MESSAGE.c.id)


def give_up(session: Session, whose: Iterable[sa.ColumnElement[bool]], reason: str, now: datetime) -> int:
    """Give up the waiting messages that fulfil `whose` and that no relay is sending. Returns how many there were."""
    dropped = sa.update(MESSAGE).where(*whose, WAITING, is_unclaimed(now))
    dropped = dropped.values(dead_at=now, last_error=reason[:_MAX_ERROR])
    return len(session.execute(dropped.returning(MESSAGE.c.id)).all())


def is_superseded(session: Session, message: Message | DeadLetter) -> bool:
    """Whether the same job has a later message of the same kind."""
    later = sa.select(MESSAGE.c.id).where(MESSAGE.c.job_id == message.job_id, MESSAGE.c.kind == message.kind)
    return session.execute(later.where(MESSAGE.c.sequence > message.sequence).limit(1)).scalar() is not None


def dead_letters(session: Session, limit: int | None = 100, *, job_id: str | None = None) -> list[DeadLetter]:
    """Messages that were given up, of one job or of all, newest first, without the superseded ones."""
    columns = {name: MESSAGE.c[name] for name in DeadLetter.__dataclass_fields__ if name != "reason"}
    query = sa.select(*columns.values(), MESSAGE.c.last_error.label("reason"))
    query = query.where(MESSAGE.c.dead_at.is_not(None), MESSAGE.c.last_error != SUPERSEDED)
    if job_id is not None:
        query = query.where(MESSAGE.c.job_id == job_id)
    query = query.order_by(MESSAGE.c.dead_at.desc(), MESSAGE.c.sequence.desc()).limit(limit)
    return [DeadLetter(**row._mapping) for row in session.execute(query)]


def count_dead(session: Session) -> int:
    """How many messages were given up, without the superseded ones."""
    dead = sa.select(sa.func.count()).where(
        MESSAGE.c.dead_at.is_not(None), MESSAGE.c.last_error.is_distinct_from(SUPERSEDED)
    )
    return int(session.execute(dead).scalar_one())


def redeliver(session: Session, message_id: str, now: datetime | None = None) -> bool:
    """Make a message due now, with all its attempts. Returns False if it does not exist or a relay is sending it."""
    now = now or utcnow()
    statement = sa.update(MESSAGE).where(MESSAGE.c.id == message_id, is_unclaimed(now))
    change = {"due_at": now, "attempts": 0, "sent_at": None, "dead_at": None, "claimed_until": None}
    session.info[CHANGED] = True
    return session.execute(statement.values(**change).returning(MESSAGE.c.id)).scalar() is not None


def _record_outcome(session: Session, statement: ReturningUpdate[tuple[Any]], values: Mapping[str, Any]) -> bool:
    """Record how an attempt ended, and have the outbox sent: the next message of the job or receiver may be due now."""
    kind = session.execute(statement, values).scalar()
    if kind in EXTERNAL:
        session.info[CHANGED] = True
    return kind is not None


def _next_sequence(session: Session, job_id: str) -> int:
    if session.get_bind().dialect.name == "postgresql":
        # Transactions that number the messages of the same job wait for each other here instead of colliding. On SQLite
        # writing transactions wait for each other anyway.
        session.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:job_id, 0))"), {"job_id": job_id})
    return int(session.execute(_LAST, {"of_job": job_id}).scalar() or 0) + 1
