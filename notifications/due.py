"""Which messages of the outbox are due, as SQL."""

from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa

from core.clock import UtcDateTime
from notifications.messages import DEFERRED, EXTERNAL, WAITING, Kind
from notifications.tables import MESSAGE

# Messages that are sent to one receiver at the same time; one if its last attempt failed.
AT_ONCE = 4
# Webhooks of one owner that are sent at the same time, whoever receives them. Each waits for a worker's slot, and comes
# back to the worker until it gets one, which costs as much as a small task each time.
OWNER_AT_ONCE = 8
NOW: sa.BindParameter[datetime] = sa.bindparam("now", type_=UtcDateTime())


def is_unclaimed(now: datetime | sa.BindParameter[datetime]) -> sa.ColumnElement[bool]:
    """Whether no relay is sending the message."""
    return sa.or_(MESSAGE.c.claimed_until.is_(None), MESSAGE.c.claimed_until <= now)


def has_failed() -> sa.ColumnElement[bool]:
    """Whether the last attempt to send the message found its receiver not working."""
    deferred = sa.func.coalesce(MESSAGE.c.last_error, "").startswith(DEFERRED, autoescape=True)
    return sa.and_(MESSAGE.c.attempts > 0, sa.not_(deferred))


def parameters(now: datetime, kinds: Iterable[Kind], limit: int) -> dict[str, object]:
    """What a statement with `ready` in it is executed with."""
    return {"now": now, "kinds": list(kinds), "most": limit}


def is_due() -> tuple[sa.ColumnElement[bool], ...]:
    """The conditions on a message alone; `ready` adds those that compare it with others."""
    return WAITING, MESSAGE.c.due_at <= NOW, is_unclaimed(NOW)


@cache  # building it took longer than the database takes to answer it
def ready() -> sa.Select[tuple[Any]]:
    """The ids of the messages to send now, with `parameters`.

    An external message is due only when no earlier one of its job and kind waits. Destinations take turns, and few
    messages are on their way to each, so that a thousand messages to a slow receiver leave room for all others. Few
    webhooks of one owner are on their way, so that a thousand slow receivers do too. All e-mails have one destination,
    so only one of each owner is on its way.
    """
    earlier = MESSAGE.alias("earlier")
    waits_for_another = (
        sa.exists()
        .where(earlier.c.job_id == MESSAGE.c.job_id, earlier.c.kind == MESSAGE.c.kind)
        .where(earlier.c.sequence < MESSAGE.c.sequence)
        .where(earlier.c.sent_at.is_(None), earlier.c.dead_at.is_(None))
    )
    order = MESSAGE.c.due_at, MESSAGE.c.sequence, MESSAGE.c.id
    nth_of_owner = sa.func.row_number().over(partition_by=(MESSAGE.c.destination, MESSAGE.c.owner_id), order_by=order)
    due = (
        sa.select(MESSAGE.c.id, nth_of_owner.label("nth_of_owner"))
        .where(*is_due(), MESSAGE.c.kind.in_(sa.bindparam("kinds", expanding=True)))
        .where(sa.or_(MESSAGE.c.kind.not_in(EXTERNAL), sa.not_(waits_for_another)))
        .where(sa.or_(MESSAGE.c.kind != "mail", sa.not_(_owner_is_mailed())))
        .subquery()
    )
    turn = sa.func.row_number().over(partition_by=MESSAGE.c.destination, order_by=order)
    traffic = _traffic()
    candidates = (
        sa.select(
            MESSAGE.c.id, MESSAGE.c.due_at, MESSAGE.c.kind, MESSAGE.c.owner_id, turn.label("turn"), traffic.c.room
        )
        .join(due, due.c.id == MESSAGE.c.id)
        .outerjoin(traffic, sa.and_(MESSAGE.c.kind.in_(EXTERNAL), traffic.c.destination == MESSAGE.c.destination))
        .where(sa.or_(MESSAGE.c.kind != "mail", due.c.nth_of_owner == 1))
        .subquery()
    )
    has_room = sa.or_(candidates.c.room.is_(None), candidates.c.turn <= candidates.c.room)
    by_turn = candidates.c.turn, candidates.c.due_at
    nth = sa.func.row_number().over(partition_by=(candidates.c.kind, candidates.c.owner_id), order_by=by_turn)
    roomy = sa.select(candidates, nth.label("nth_of_owner")).where(has_room).subquery()
    sending = _sending()
    room_of_owner = OWNER_AT_ONCE - sa.func.coalesce(sending.c.webhooks, 0)
    owner_has_room = sa.or_(roomy.c.kind != "notice", roomy.c.owner_id.is_(None), roomy.c.nth_of_owner <= room_of_owner)
    found = sa.select(roomy.c.id).outerjoin(sending, sending.c.owner_id == roomy.c.owner_id).where(owner_has_room)
    return found.order_by(roomy.c.turn, roomy.c.due_at).limit(sa.bindparam("most", type_=sa.Integer()))


def _sending() -> sa.Subquery:
    """How many webhooks of each owner are on their way."""
    webhooks = sa.select(MESSAGE.c.owner_id, sa.func.count().label("webhooks"))
    webhooks = webhooks.where(WAITING, MESSAGE.c.kind == "notice", MESSAGE.c.claimed_until > NOW)
    return webhooks.group_by(MESSAGE.c.owner_id).subquery()


def _owner_is_mailed() -> sa.ColumnElement[bool]:
    """Whether another e-mail of the message's owner is on its way."""
    other = MESSAGE.alias("other")
    return (
        sa.exists()
        .where(other.c.kind == "mail", other.c.claimed_until > NOW)
        .where(other.c.owner_id.is_not_distinct_from(MESSAGE.c.owner_id))
        .where(other.c.sent_at.is_(None), other.c.dead_at.is_(None))
    )


def _traffic() -> sa.Subquery:
    """How many more messages may be sent to each destination for which some wait."""
    on_their_way = sa.func.sum(sa.case((MESSAGE.c.claimed_until > NOW, 1), else_=0))
    # Alerts go to a channel one at a time. A receiver that is down gets one attempt at a time.
    failed = sa.func.max(sa.case((has_failed(), 1), else_=0))
    one = sa.or_(failed > 0, sa.func.min(MESSAGE.c.kind) == "alert")
    at_once = sa.case((one, 1), else_=AT_ONCE)
    waiting = sa.select(MESSAGE.c.destination, (at_once - on_their_way).label("room"))
    waiting = waiting.where(WAITING, MESSAGE.c.kind.in_(EXTERNAL), MESSAGE.c.destination.is_not(None))
    return waiting.group_by(MESSAGE.c.destination).subquery()
