"""Each rule that the database itself keeps refuses, by itself, a write that goes past `credits.ledger`.

Every write here breaks one rule only, and once that rule is dropped the same write goes through; so a change that drops
a rule, or lets another hide it, makes a test fail.
"""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from credits.tables import MAX_CREDITS
from storage.database import Database
from tests.contract.rules import (
    POSTGRESQL,
    SQLITE,
    Rule,
    connected,
    each_refuses_by_itself,
    every_rule_is_tried,
)

pytestmark = pytest.mark.both_databases

# Only there for a foreign key to point at: it cannot be broken where the primary key is not.
NOT_BY_THEMSELVES = {"credit_hold_whose"}

# The account `acct` of ada: 100 granted, 7 spent, 20 held, 5 entries, the first with the key `g`. Its holds:
# `live` of 20; `done` of 30, 10 settled and 3 refunded; `bare`, which no entry names. `other` is bob's account.
ENTRY = """INSERT INTO credit_entry (id, account_id, seq, kind, counterparty, amount, hold_id, training_id,
    idempotency_key, request_hash, created_at) VALUES ({id}, {account}, {seq}, {kind}, {counterparty},
    {amount}, {hold}, {training}, {key}, {hash}, '2026-01-01 00:00:00')"""
HOLD = """INSERT INTO credit_hold (id, account_id, training_id, amount, settled, refunded, state, expires_at)
    VALUES ({id}, {account}, {training}, {amount}, {settled}, {refunded}, {state}, '2026-01-01 00:00:00')"""
GRANT = {
    "id": "'new'", "account": "'acct'", "seq": "6", "kind": "'grant'", "counterparty": "'issued'", "amount": "1",
    "hold": "NULL", "training": "NULL", "key": "'new'", "hash": "'" + "0" * 64 + "'",
}  # fmt: skip
LIVE = {"kind": "'release'", "counterparty": "'held'", "hold": "'live'", "training": "'t-live'"}
DONE = {"counterparty": "'revenue'", "hold": "'done'", "training": "'t-done'"}
NEW_HOLD = {
    "id": "'new'", "account": "'acct'", "training": "'t-new'", "amount": "5", "settled": "0", "refunded": "0",
    "state": "'held'",
}  # fmt: skip


def entry(**changed: str) -> str:
    """A good grant of 1, but for what is changed."""
    return ENTRY.format(**GRANT | changed)


def release(**changed: str) -> str:
    """A good release of the hold `live`, but for what is changed."""
    return ENTRY.format(**GRANT | LIVE | changed)


def hold(**changed: str) -> str:
    return HOLD.format(**NEW_HOLD | changed)


def account(change: str) -> str:
    return f"UPDATE credit_account SET {change} WHERE id = 'acct'"  # noqa: S608 - all of it stands in this file


def changed_hold(change: str, hold_id: str) -> str:
    return f"UPDATE credit_hold SET {change} WHERE id = '{hold_id}'"  # noqa: S608 - all of it stands in this file


RULES = [
    Rule("credit_account_pkey", "INSERT INTO credit_account VALUES ('acct', 'eve', 0, 0, 0, 0)"),
    Rule("credit_account_owner", "INSERT INTO credit_account VALUES ('new', 'ada', 0, 0, 0, 0)"),
    Rule("credit_account_named", account("owner_id = ''")),
    Rule("credit_account_granted", account(f"granted = {MAX_CREDITS + 1}")),
    Rule("credit_account_spent", account("spent = -1")),
    Rule("credit_account_held", account("held = -1")),
    Rule("credit_account_seq", account("seq = -1")),
    Rule("credit_account_no_overdraft", account("held = held + 74")),
    Rule("credit_account_integers", account("granted = 100.5"), SQLITE),
    Rule("credit_account_no_delete", "DELETE FROM credit_account WHERE id = 'other'"),
    Rule("credit_hold_pkey", hold(id="'live'")),
    Rule("credit_hold_training", hold(training="'t-live'")),
    Rule("credit_hold_account_id_fkey", hold(account="'none'")),
    Rule("credit_hold_amount", hold(amount="0")),
    Rule("credit_hold_settled", hold(amount="5", settled="6", state="'settled'")),
    Rule("credit_hold_refunded", hold(settled="2", refunded="3", state="'settled'")),
    Rule("credit_hold_state", hold(state="'lost'")),
    Rule("credit_hold_taken", hold(state="'settled'")),
    Rule("credit_hold_integers", hold(amount="'many'"), SQLITE),
    Rule("credit_hold_moves", changed_hold("id = 'x'", "bare")),
    Rule("credit_hold_moves", changed_hold("account_id = 'other'", "bare")),
    Rule("credit_hold_moves", changed_hold("training_id = 't-x'", "bare")),
    Rule("credit_hold_moves", changed_hold("amount = 40", "done")),
    Rule("credit_hold_moves", changed_hold("state = 'held', settled = 0, refunded = 0", "done")),
    Rule("credit_hold_moves", changed_hold("settled = 11", "done")),
    Rule("credit_hold_moves", changed_hold("refunded = 2", "done")),
    Rule("credit_hold_moves", changed_hold("expires_at = '2027-01-01 00:00:00'", "done")),
    Rule("credit_hold_moves", changed_hold("state = 'settled', settled = 5, refunded = 1", "live")),
    Rule("credit_hold_no_delete", "DELETE FROM credit_hold WHERE id = 'bare'"),
    Rule("credit_entry_pkey", entry(id="'first'")),
    Rule("credit_entry_account_id_fkey", entry(account="'none'", seq="1")),
    Rule("credit_entry_seq", entry(seq="5"), before=("credit_entry_gapless",)),
    Rule("credit_entry_key", entry(key="'g'")),
    Rule("credit_entry_amount", entry(amount="0")),
    Rule("credit_entry_kind", release(kind="'gift'")),
    Rule("credit_entry_counterparty", entry(counterparty="'revenue'")),
    Rule("credit_entry_names_hold", release(hold="NULL")),
    Rule("credit_entry_names_training", release(training="NULL")),
    Rule("credit_entry_named", entry(hash="'short'")),
    Rule("credit_entry_named", entry(key="''")),
    Rule("credit_entry_hold", release(hold="'none'")),
    Rule("credit_entry_hold", release(account="'other'", seq="1")),
    Rule("credit_entry_hold", release(training="'t-done'")),
    Rule("credit_entry_integers", entry(amount="1.5"), SQLITE),
    Rule("one_hold", release(kind="'hold'")),
    Rule("one_resolution", release(hold="'done'", training="'t-done'")),
    Rule("credit_entry_no_update", "UPDATE credit_entry SET amount = 101 WHERE id = 'first'"),
    Rule("credit_entry_no_delete", "DELETE FROM credit_entry WHERE seq = 5"),
    Rule("credit_entry_gapless", entry(seq="7")),
    Rule("credit_entry_no_truncate", "TRUNCATE credit_entry", POSTGRESQL),
    Rule("credit_hold_no_truncate", "TRUNCATE credit_hold CASCADE", POSTGRESQL, ("credit_entry_no_truncate",)),
    Rule(
        "credit_account_no_truncate",
        "TRUNCATE credit_account CASCADE",
        POSTGRESQL,
        ("credit_entry_no_truncate", "credit_hold_no_truncate"),
    ),
]

BOOKS = [
    "INSERT INTO credit_account VALUES ('acct', 'ada', 100, 7, 20, 5)",
    "INSERT INTO credit_account VALUES ('other', 'bob', 0, 0, 0, 0)",
    hold(id="'live'", training="'t-live'", amount="20"),
    hold(id="'done'", training="'t-done'", amount="30", settled="10", refunded="3", state="'settled'"),
    hold(id="'bare'", training="'t-bare'", amount="1"),
    entry(id="'first'", seq="1", amount="100", key="'g'"),
    entry(**DONE | {"id": "'e2'", "seq": "2", "kind": "'hold'", "counterparty": "'held'", "key": "'h'"}),
    entry(**DONE | {"id": "'e3'", "seq": "3", "kind": "'settle'", "amount": "10", "key": "'s'"}),
    entry(**DONE | {"id": "'e4'", "seq": "4", "kind": "'refund'", "amount": "3", "key": "'r'"}),
    release(id="'e5'", seq="5", kind="'hold'", amount="20", key="'l'"),
]


@pytest.fixture
def connection(database: Database) -> Iterator[sa.Connection]:
    yield from connected(database, BOOKS)


def test_each_rule_refuses_by_itself(connection: sa.Connection) -> None:
    each_refuses_by_itself(connection, RULES)


def test_every_rule_is_tried(connection: sa.Connection) -> None:
    """A rule that the schema gains needs a write above that breaks it."""
    every_rule_is_tried(connection, RULES, ("credit_account", "credit_hold", "credit_entry"), NOT_BY_THEMSELVES)
