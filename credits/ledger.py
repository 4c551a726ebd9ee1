"""Every movement of credits: grant, hold, settle, release, expire, refund; and queries.

A movement works in the caller's transaction (`Database.writing()`) and does not commit, so that credits, status and
messages change together. It locks the owner's account first, so that two movements of one account queue and cannot
deadlock. A transaction that moves credits of several accounts should lock them in the order of their owners' ids.

For every account, always: `available + held + spent = granted`, and none is below zero.

    grant   granted + n                           hold      held + n, if n credits are available
    settle  held - all of the hold, spent + n     release   held - all of the hold
    refund  spent - n, so that it is available    expire    held - all of the hold

Every movement has a key. The same key with the same request returns the first result; with another request it raises
`KeyReused`. A movement that raises has stored nothing, so its key may be used again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.errors import IllegalMove, InsufficientCredits, SpecInvalid
from core.ids import new_id
from credits import journal
from credits.tables import ACCOUNT, ENTRY, HOLD, MAX_CREDITS, RESOLUTIONS

_STATES = {"settle": "settled", "release": "released", "expire": "expired"}


@dataclass(frozen=True)
class Balance:
    """What an owner has, in credits."""

    granted: int
    spent: int
    held: int
    available: int


@dataclass(frozen=True)
class LedgerEntry:
    """One line of an owner's statement."""

    id: str
    seq: int
    kind: str
    amount: int
    hold_id: str | None
    training_id: str | None
    created_at: datetime


@dataclass(frozen=True)
class Hold:
    """Credits reserved for a training or a drawing; `state` is held, settled, released or expired."""

    id: str
    owner_id: str
    training_id: str
    amount: int
    settled: int
    refunded: int
    state: str
    expires_at: datetime


# ---- movements ----


def grant(session: Session, owner_id: str, amount: int, *, key: str) -> str:
    """Grant credits to an owner, opening the account if there is none. Returns the entry's id.

    Raises SpecInvalid if the amount is not a positive integer, or more than an account can hold.
    """
    journal.check(amount, key=key, owner_id=owner_id)
    account_id = journal.open_account(session, owner_id)
    request = journal.request_hash("grant", amount, None)
    if (done := journal.find_entry(session, account_id, key, request)) is not None:
        return done
    room = ACCOUNT.c.granted <= MAX_CREDITS - amount
    seq = journal.move_if(session, account_id, room, granted=amount)
    if seq is None:
        raise SpecInvalid.of({"amount": f"an account is granted at most {MAX_CREDITS} credits in all"})
    return journal.append(session, account_id, seq, "grant", amount, key=key, request=request)


def hold(
    session: Session, owner_id: str, training_id: str, amount: int, *, key: str, expires_at: datetime,
    what: str = "training",
) -> str:  # fmt: skip
    """Reserve credits for a training, or for a drawing with its id in `training_id`. Returns the hold's id.

    `expires_at` (with a time zone) is not part of the request's identity: a retry computes it again, and the first one
    counts. Raises InsufficientCredits if fewer than `amount` are available (an owner without an account has 0), and
    IllegalMove if the training has a hold already, under another key.
    """
    journal.check(amount, key=key, owner_id=owner_id, training_id=training_id)
    account_id = journal.lock_account(session, owner_id)
    if account_id is None:
        raise InsufficientCredits(f"this {what} costs {amount} credits; 0 are available")
    request = journal.request_hash("hold", amount, training_id)
    of_training = sa.select(HOLD.c.id).where(HOLD.c.training_id == training_id)
    if journal.find_entry(session, account_id, key, request) is not None:
        return str(session.execute(of_training).scalar_one())
    if session.execute(of_training).scalar() is not None:
        raise IllegalMove(f"{training_id} has a hold already")
    available = ACCOUNT.c.granted - ACCOUNT.c.spent - ACCOUNT.c.held
    seq = journal.move_if(session, account_id, available >= amount, held=amount)
    if seq is None:
        left = balance(session, owner_id).available
        raise InsufficientCredits(
            f"this {what} costs {amount} credits; {left} are available",
            {"needed": amount, "available": left},
        )
    hold_id = new_id("hold")
    row = {"id": hold_id, "account_id": account_id, "training_id": training_id, "amount": amount}
    try:
        session.execute(sa.insert(HOLD).values(**row, settled=0, refunded=0, state="held", expires_at=expires_at))
    except IntegrityError:  # another account has just made a hold for this training; the transaction is rolled back
        raise IllegalMove(f"{training_id} has a hold already") from None
    about = {"hold_id": hold_id, "training_id": training_id}
    journal.append(session, account_id, seq, "hold", amount, key=key, request=request, **about)
    return hold_id


def settle(session: Session, hold_id: str, amount: int, *, key: str | None = None) -> str:
    """Charge `amount` of a hold, from 0 to all of it, and release the rest. Returns the entry's id.

    Settling with 0 is a release. Settling again with the same amount returns the same entry, under any key. Raises
    IllegalMove if `amount` is more than the hold, or if the hold was resolved in another way. If it has expired, the
    caller delivers a late success without a charge.
    """
    journal.check(amount, least=0, key=key)
    return _resolve(session, hold_id, "settle" if amount else "release", amount, key)


def expire(session: Session, hold_id: str) -> str:
    """Release a whole hold that has expired. Returns the entry's id. Raises IllegalMove if it was resolved before.

    The caller decides that it has expired: it is past `expires_at`, *and* no worker works on the training.
    """
    return _resolve(session, hold_id, "expire", 0, None)


def extend(session: Session, hold_id: str, expires_at: datetime) -> None:
    """Let a live hold expire later. A resolved one stays as it is."""
    later = sa.update(HOLD).where(HOLD.c.id == hold_id, HOLD.c.state == "held", HOLD.c.expires_at < expires_at)
    session.execute(later.values(expires_at=expires_at))


def refund(session: Session, hold_id: str, amount: int, *, key: str) -> str:
    """Refund credits that a hold settled: they leave `spent` and are available again. Returns the entry's id.

    Raises IllegalMove if the hold was not settled, or if all its refunds together would exceed what it settled.
    """
    journal.check(amount, key=key)
    account_id = journal.lock_account_of(session, hold_id)
    request = journal.request_hash("refund", amount, hold_id)
    if (done := journal.find_entry(session, account_id, key, request)) is not None:
        return done
    training_id: str | None = session.execute(
        sa.update(HOLD)
        .where(HOLD.c.id == hold_id, HOLD.c.settled - HOLD.c.refunded >= amount)
        .values(refunded=HOLD.c.refunded + amount)
        .returning(HOLD.c.training_id)
    ).scalar()
    if training_id is None:
        raise IllegalMove(f"{hold_id}: a refund cannot be more than was settled")
    seq = journal.move(session, account_id, spent=-amount)
    about = {"hold_id": hold_id, "training_id": training_id}
    return journal.append(session, account_id, seq, "refund", amount, key=key, request=request, **about)


def _resolve(
    session: Session,
    hold_id: str,
    kind: Literal["settle", "release", "expire"],
    taken: int,
    key: str | None,
) -> str:
    """End a hold once: `taken` credits of it are spent, and the rest is released."""
    account_id = journal.lock_account_of(session, hold_id)
    request = journal.request_hash(kind, taken, hold_id)
    if key is not None and (done := journal.find_entry(session, account_id, key, request)) is not None:
        return done
    held = session.execute(_HOLD, {"hold_id": hold_id}).one()
    if held.state != "held":
        if (held.state, held.settled) != (_STATES[kind], taken):
            raise IllegalMove(f"{hold_id} is {held.state} already", {"state": held.state})
        resolution = sa.select(ENTRY.c.id).where(ENTRY.c.hold_id == hold_id, ENTRY.c.kind.in_(RESOLUTIONS))
        return str(session.execute(resolution).scalar_one())
    if taken > held.amount:
        raise IllegalMove(f"{hold_id} holds {held.amount} credits; {taken} are more", {"state": held.state})
    session.execute(_RESOLVE, {"hold_id": hold_id, "state": _STATES[kind], "settled": taken})
    seq = journal.move(session, account_id, held=-held.amount, spent=taken)
    key = key or f"{journal.OWN_KEYS}{kind}:{hold_id}"
    amount = taken or held.amount
    about = {"hold_id": hold_id, "training_id": held.training_id}
    return journal.append(session, account_id, seq, kind, amount, key=key, request=request, **about)


# ---- queries ----


def balance(session: Session, owner_id: str) -> Balance:
    """An owner's balance; all zeros without an account."""
    query = sa.select(ACCOUNT.c.granted, ACCOUNT.c.spent, ACCOUNT.c.held).where(ACCOUNT.c.owner_id == owner_id)
    granted, spent, held = session.execute(query).one_or_none() or (0, 0, 0)
    return Balance(granted, spent, held, granted - spent - held)


def totals(session: Session) -> Balance:
    """The balances of all owners together."""
    query = sa.select(*(sa.func.coalesce(sa.func.sum(ACCOUNT.c[name]), 0) for name in ("granted", "spent", "held")))
    granted, spent, held = (int(amount) for amount in session.execute(query).one())
    return Balance(granted, spent, held, granted - spent - held)


def entries(session: Session, owner_id: str, limit: int = 50, before_seq: int | None = None) -> list[LedgerEntry]:
    """An owner's entries, newest first; with `before_seq` only older ones, for the next page."""
    query = (
        sa.select(*(ENTRY.c[name] for name in LedgerEntry.__dataclass_fields__))
        .join(ACCOUNT, ACCOUNT.c.id == ENTRY.c.account_id)
        .where(ACCOUNT.c.owner_id == owner_id)
        .order_by(ENTRY.c.seq.desc())
        .limit(limit)
    )
    if before_seq is not None:
        query = query.where(ENTRY.c.seq < before_seq)
    return [LedgerEntry(*row) for row in session.execute(query)]


@dataclass(frozen=True)
class AccountLine:
    """An entry with what it did to the available credits, and how many were available after it.

    `held`: the credits of the hold that it is about.
    """

    entry: LedgerEntry
    change: int
    available: int
    held: int | None


def lines(session: Session, owner_id: str, limit: int = 50, before_seq: int | None = None) -> list[AccountLine]:
    """An owner's entries as `entries` lists them, each with the balance after it."""
    change = sa.case(
        (ENTRY.c.kind == "hold", -ENTRY.c.amount),
        (ENTRY.c.kind == "settle", HOLD.c.amount - ENTRY.c.amount),
        else_=ENTRY.c.amount,
    )
    # Summed over all entries of the account, before the page is cut out.
    summed = (
        sa.select(
            *(ENTRY.c[name] for name in LedgerEntry.__dataclass_fields__),
            change.label("change"),
            sa.func.sum(change).over(order_by=ENTRY.c.seq).label("available"),
            HOLD.c.amount.label("held"),
        )
        .join(ACCOUNT, ACCOUNT.c.id == ENTRY.c.account_id)
        .outerjoin(HOLD, HOLD.c.id == ENTRY.c.hold_id)
        .where(ACCOUNT.c.owner_id == owner_id)
        .subquery()
    )
    query = sa.select(summed).order_by(summed.c.seq.desc()).limit(limit)
    if before_seq is not None:
        query = query.where(summed.c.seq < before_seq)
    return [AccountLine(LedgerEntry(*row[:-3]), *map(_whole, row[-3:])) for row in session.execute(query)]  # type: ignore[arg-type]


def _whole(number: int | None) -> int | None:
    """PostgreSQL's sums of 64-bit integers are decimals."""
    return None if number is None else int(number)


def hold_of(session: Session, training_id: str) -> Hold | None:
    """The hold of a training; None if it has none."""
    row = session.execute(_HOLD_OF, {"training": training_id}).one_or_none()
    return None if row is None else Hold(*row)


def holds_of(session: Session, training_ids: Sequence[str]) -> dict[str, Hold]:
    """The holds of these trainings, by training."""
    query = _HOLDS.add_columns(HOLD.c.training_id).where(HOLD.c.training_id.in_(training_ids))
    return {training_id: Hold(*row) for *row, training_id in session.execute(query)}


def live_holds(session: Session, owner_id: str, limit: int = 200) -> list[Hold]:
    """An owner's live holds, newest first."""
    query = _HOLDS.where(ACCOUNT.c.owner_id == owner_id, HOLD.c.state == "held")
    return [Hold(*row) for row in session.execute(query.order_by(HOLD.c.id.desc()).limit(limit))]


_HOLDS = sa.select(
    HOLD.c.id,
    ACCOUNT.c.owner_id,
    *(HOLD.c[name] for name in ("training_id", "amount", "settled", "refunded", "state", "expires_at")),
).join(ACCOUNT, ACCOUNT.c.id == HOLD.c.account_id)
# Built once: to build a statement takes as long as to execute it.
_HOLD_OF = _HOLDS.where(HOLD.c.training_id == sa.bindparam("training"))
_HOLD = sa.select(HOLD).where(HOLD.c.id == sa.bindparam("hold_id"))
_RESOLVE = sa.update(HOLD).where(HOLD.c.id == sa.bindparam("hold_id"))
