"""The three tables of the ledger.

The database itself enforces the rules (what may be negative, what may change, what may exist twice), with the CHECKs,
unique indexes and triggers of `storage/migrations/versions/0001_ledger.py`. These classes declare the same columns,
keys and indexes, and a test compares the two.
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from core.clock import UtcDateTime

KINDS = ("grant", "hold", "settle", "release", "expire", "refund")
RESOLUTIONS = ("settle", "release", "expire")

# The most credits that an account may be granted in all: exact in any JSON parser, and far below the 63 bits where
# SQLite's integers silently become floats.
MAX_CREDITS = 2**53 - 1


def _where(condition: str) -> dict[str, Any]:
    """The condition of a partial index, for both databases."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


class CreditAccount(SQLModel, table=True):
    """An owner's account: credits granted, spent and held. `seq` is the number of its last entry."""

    __tablename__ = "credit_account"
    __table_args__ = (sa.UniqueConstraint("owner_id", name="credit_account_owner"),)

    id: str = Field(primary_key=True, sa_type=sa.Text)
    owner_id: str = Field(sa_type=sa.Text)
    granted: int = Field(sa_type=sa.BigInteger)
    spent: int = Field(sa_type=sa.BigInteger)
    held: int = Field(sa_type=sa.BigInteger)
    seq: int = Field(sa_type=sa.BigInteger)


class CreditHold(SQLModel, table=True):
    """Credits reserved for one training, or for one drawing, whose id is then in `training_id`.

    The state changes once, from `held` to `settled`, `released` or `expired`. A settled hold has charged `settled` of
    its `amount` (the rest was released) and refunded `refunded` of that later.
    """

    __tablename__ = "credit_hold"
    __table_args__ = (
        sa.UniqueConstraint("training_id", name="credit_hold_training"),
        # The target of an entry's foreign key: no entry can name a hold of another account or training.
        sa.UniqueConstraint("id", "account_id", "training_id", name="credit_hold_whose"),
        sa.Index("credit_hold_live", "expires_at", **_where("state = 'held'")),
    )

    id: str = Field(primary_key=True, sa_type=sa.Text)
    account_id: str = Field(foreign_key="credit_account.id", sa_type=sa.Text)
    training_id: str = Field(sa_type=sa.Text)
    amount: int = Field(sa_type=sa.BigInteger)
    settled: int = Field(sa_type=sa.BigInteger)
    refunded: int = Field(sa_type=sa.BigInteger)
    state: str = Field(sa_type=sa.Text)
    expires_at: datetime = Field(sa_type=UtcDateTime)


class CreditEntry(SQLModel, table=True):
    """One movement. It is never changed or deleted; `seq` numbers an account's entries from 1 without gaps.

    `counterparty` is the other side: `issued` for a grant, `revenue` for a settle or refund, `held` for the rest.
    System accounts are sums over it, not rows that every transaction would have to lock.
    """

    __tablename__ = "credit_entry"
    __table_args__ = (
        sa.UniqueConstraint("account_id", "seq", name="credit_entry_seq"),
        sa.UniqueConstraint("account_id", "idempotency_key", name="credit_entry_key"),
        sa.ForeignKeyConstraint(
            ["hold_id", "account_id", "training_id"],
            ["credit_hold.id", "credit_hold.account_id", "credit_hold.training_id"],
            name="credit_entry_hold",
        ),
        sa.Index("one_hold", "hold_id", unique=True, **_where("kind = 'hold'")),
        sa.Index(
            "one_resolution",
            "hold_id",
            unique=True,
            **_where("kind IN ('settle', 'release', 'expire')"),
        ),
    )

    id: str = Field(primary_key=True, sa_type=sa.Text)
    account_id: str = Field(foreign_key="credit_account.id", sa_type=sa.Text)
    seq: int = Field(sa_type=sa.BigInteger)
    kind: str = Field(sa_type=sa.Text)
    counterparty: str = Field(sa_type=sa.Text)
    amount: int = Field(sa_type=sa.BigInteger)
    hold_id: str | None = Field(sa_type=sa.Text)
    training_id: str | None = Field(sa_type=sa.Text)
    idempotency_key: str = Field(sa_type=sa.Text)
    request_hash: str = Field(sa_type=sa.Text)
    created_at: datetime = Field(sa_type=UtcDateTime)


# The same tables for statements in SQLAlchemy Core.
ACCOUNT = SQLModel.metadata.tables["credit_account"]
HOLD = SQLModel.metadata.tables["credit_hold"]
ENTRY = SQLModel.metadata.tables["credit_entry"]
