"""The steps of every movement of credits, in their order: check the request, lock the account, look up the key, change
the account's sums, append an entry.
"""

import hashlib
import json

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.clock import utcnow
from core.errors import KeyReused, NotFound, SpecInvalid
from core.ids import new_id
from credits.tables import ACCOUNT, ENTRY, HOLD, MAX_CREDITS

OWN_KEYS = "imprint:"  # the prefix of the ledger's own keys; callers' keys must not begin with it
_MAX_TEXT = 255
_COUNTERPARTIES = {"grant": "issued", "settle": "revenue", "refund": "revenue"}
# Statements are built once: to build one takes as long as to execute it.
_ACCOUNT = sa.select(ACCOUNT.c.id).where(ACCOUNT.c.owner_id == sa.bindparam("owner")).with_for_update()
_HOLDER = sa.select(HOLD.c.account_id).where(HOLD.c.id == sa.bindparam("hold_id")).scalar_subquery()
_ACCOUNT_OF = sa.select(ACCOUNT.c.id).where(ACCOUNT.c.id == _HOLDER).with_for_update()
_WITH_KEY = sa.select(ENTRY.c.id, ENTRY.c.request_hash).where(
    ENTRY.c.account_id == sa.bindparam("account"), ENTRY.c.idempotency_key == sa.bindparam("key")
)
_APPEND = sa.insert(ENTRY)


def check(amount: int, *, least: int = 1, **texts: str | None) -> None:
    """Check the arguments of a movement. Raises SpecInvalid with every fault. A bool is not an amount."""
    faults = {}
    if type(amount) is not int or not least <= amount <= MAX_CREDITS:
        faults["amount"] = f"must be an integer from {least} to {MAX_CREDITS}"
    for name, text in texts.items():
        if text is not None and not 0 < len(text) <= _MAX_TEXT:
            faults[name] = f"must have 1 to {_MAX_TEXT} characters"
        elif name == "key" and text is not None and text.startswith(OWN_KEYS):
            faults[name] = f"must not begin with {OWN_KEYS}"
    if faults:
        raise SpecInvalid.of(faults)


def request_hash(kind: str, amount: int, about: str | None) -> str:
    """The identity of a request: the movement, its amount, and the training or hold that it is about."""
    return hashlib.sha256(json.dumps([kind, amount, about]).encode()).hexdigest()


def open_account(session: Session, owner_id: str) -> str:
    """Lock the account of an owner, opening it if there is none. Returns its id."""
    session.execute(
        sa.text(
            "INSERT INTO credit_account (id, owner_id, granted, spent, held, seq)"
            " VALUES (:id, :owner_id, 0, 0, 0, 0) ON CONFLICT (owner_id) DO NOTHING"
        ),
        {"id": new_id("acct"), "owner_id": owner_id},
    )
    account_id = lock_account(session, owner_id)
    assert account_id is not None, "accounts are never removed"  # noqa: S101
    return account_id


def lock_account(session: Session, owner_id: str) -> str | None:
    """Lock an owner's account until the transaction ends. Returns its id, or None if there is none.

    On SQLite, where `with_for_update` has no effect, the transaction itself is the lock.
    """
    account_id: str | None = session.execute(_ACCOUNT, {"owner": owner_id}).scalar()
    return account_id


def lock_account_of(session: Session, hold_id: str) -> str:
    """Lock the account that a hold belongs to. Returns its id. Raises NotFound if there is no such hold."""
    account_id: str | None = session.execute(_ACCOUNT_OF, {"hold_id": hold_id}).scalar()
    if account_id is None:
        raise NotFound(f"there is no hold {hold_id}")
    return account_id


def find_entry(session: Session, account_id: str, key: str, request: str) -> str | None:
    """The entry that an earlier request with this key made; None if the key is new.

    Raises KeyReused if the earlier request was a different one.
    """
    row = session.execute(_WITH_KEY, {"account": account_id, "key": key}).one_or_none()
    if row is None:
        return None
    if row.request_hash != request:
        raise KeyReused(f"the key {key} was used for another request")
    entry_id: str = row.id
    return entry_id


def move_if(session: Session, account_id: str, condition: sa.ColumnElement[bool], **change: int) -> int | None:
    """Add to the sums of a locked account if `condition` holds. Returns the number of the entry to write, or None."""
    sums = {name: ACCOUNT.c[name] + amount for name, amount in change.items()}
    statement = sa.update(ACCOUNT).where(ACCOUNT.c.id == account_id, condition)
    seq: int | None = session.execute(statement.values(**sums, seq=ACCOUNT.c.seq + 1).returning(ACCOUNT.c.seq)).scalar()
    return seq


def move(session: Session, account_id: str, **change: int) -> int:
    """Add to the sums of a locked account. Returns the number of the entry to write."""
    seq = move_if(session, account_id, sa.true(), **change)
    assert seq is not None, "accounts are never removed"  # noqa: S101
    return seq


def append(
    session: Session,
    account_id: str,
    seq: int,
    kind: str,
    amount: int,
    *,
    key: str,
    request: str,
    hold_id: str | None = None,
    training_id: str | None = None,
) -> str:
    """Write one entry of the journal. Returns its id."""
    entry_id = new_id("entry")
    row = {
        "id": entry_id,
        "account_id": account_id,
        "seq": seq,
        "kind": kind,
        "counterparty": _COUNTERPARTIES.get(kind, "held"),
        "amount": amount,
        "hold_id": hold_id,
        "training_id": training_id,
        "idempotency_key": key,
        "request_hash": request,
        "created_at": utcnow(),
    }
    session.execute(_APPEND, row)
    return entry_id
