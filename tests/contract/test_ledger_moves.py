"""Each movement of the ledger by itself, on both databases."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest

from core.clock import utcnow
from core.errors import IllegalMove, ImprintError, InsufficientCredits, KeyReused, NotFound, SpecInvalid
from credits import ledger
from credits.audit import audit
from credits.ledger import Balance
from credits.tables import MAX_CREDITS
from storage.database import Database

EXPIRES = utcnow() + timedelta(days=7)


def balance(database: Database, owner_id: str = "ada") -> Balance:
    with database.reading() as session:
        return ledger.balance(session, owner_id)


def grant(database: Database, amount: int, key: str = "g", owner_id: str = "ada") -> str:
    with database.writing() as session:
        return ledger.grant(session, owner_id, amount, key=key)


def hold(database: Database, amount: int, training_id: str = "t", key: str = "h", owner_id: str = "ada") -> str:
    with database.writing() as session:
        return ledger.hold(session, owner_id, training_id, amount, key=key, expires_at=EXPIRES)


def refused(
    database: Database, error: type[ImprintError], call: Callable[..., object], *args: object, **kw: object
) -> None:
    """The call raises, and even a caller who then commits has stored nothing."""
    with database.reading() as session:
        before = ledger.balance(session, "ada"), ledger.entries(session, "ada"), ledger.hold_of(session, "t")
    with database.writing() as session, pytest.raises(error):
        call(session, *args, **kw)
    with database.reading() as session:
        after = ledger.balance(session, "ada"), ledger.entries(session, "ada"), ledger.hold_of(session, "t")
        assert audit(session) == []
    assert before == after


def test_an_owner_without_an_account_has_nothing(database: Database) -> None:
    assert balance(database) == Balance(0, 0, 0, 0)
    with database.reading() as session:
        assert ledger.entries(session, "ada") == []
        assert ledger.hold_of(session, "t") is None
    refused(database, InsufficientCredits, ledger.hold, "ada", "t", 1, key="h", expires_at=EXPIRES)


def test_a_grant_opens_the_account_and_counts_once(database: Database) -> None:
    entry = grant(database, 100)
    assert grant(database, 100) == entry
    assert balance(database) == Balance(100, 0, 0, 100)
    refused(database, KeyReused, ledger.grant, "ada", 99, key="g")


def test_keys_belong_to_their_owner(database: Database) -> None:
    assert grant(database, 5) != grant(database, 7, owner_id="bob")
    assert (balance(database).granted, balance(database, "bob").granted) == (5, 7)


def test_a_hold_reserves_and_its_key_gives_it_back(database: Database) -> None:
    grant(database, 100)
    hold_id = hold(database, 60)
    assert hold(database, 60) == hold_id
    assert balance(database) == Balance(100, 0, 60, 40)
    for amount, training_id in ((61, "t"), (60, "u")):
        refused(database, KeyReused, ledger.hold, "ada", training_id, amount, key="h", expires_at=EXPIRES)
    refused(database, KeyReused, ledger.grant, "ada", 60, key="h")
    refused(database, IllegalMove, ledger.hold, "ada", "t", 60, key="h2", expires_at=EXPIRES)


def test_a_retry_may_expire_later_and_the_first_time_counts(database: Database) -> None:
    grant(database, 100)
    hold_id = hold(database, 60)
    with database.writing() as session:
        later = EXPIRES + timedelta(days=1)
        assert ledger.hold(session, "ada", "t", 60, key="h", expires_at=later) == hold_id
        found = ledger.hold_of(session, "t")
    assert found == ledger.Hold(hold_id, "ada", "t", 60, 0, 0, "held", EXPIRES)


def test_too_few_credits_leave_the_key_usable(database: Database) -> None:
    grant(database, 10)
    refused(database, InsufficientCredits, ledger.hold, "ada", "t", 11, key="h", expires_at=EXPIRES)
    grant(database, 1, key="g2")
    hold(database, 11)
    assert balance(database) == Balance(11, 0, 11, 0)


def test_settling_a_part_gives_the_rest_back(database: Database) -> None:
    grant(database, 100)
    hold_id = hold(database, 60)
    refused(database, IllegalMove, ledger.settle, hold_id, 61)
    with database.writing() as session:
        entry = ledger.settle(session, hold_id, 25, key="s")
    assert balance(database) == Balance(100, 25, 0, 75)
    with database.writing() as session:
        assert ledger.settle(session, hold_id, 25, key="s") == entry
        assert ledger.settle(session, hold_id, 25, key="another") == entry
        assert ledger.settle(session, hold_id, 25) == entry
    refused(database, KeyReused, ledger.settle, hold_id, 24, key="s")
    refused(database, IllegalMove, ledger.settle, hold_id, 24)
    refused(database, IllegalMove, ledger.expire, hold_id)
    refused(database, IllegalMove, ledger.settle, hold_id, 0)


def test_settling_nothing_is_a_release(database: Database) -> None:
    grant(database, 100)
    hold_id = hold(database, 60)
    with database.writing() as session:
        entry = ledger.settle(session, hold_id, 0, key="s")
        assert ledger.settle(session, hold_id, 0) == entry
        assert ledger.settle(session, hold_id, 0, key="s") == entry
        found = ledger.hold_of(session, "t")
    assert found is not None
    assert found.state == "released"
    assert balance(database) == Balance(100, 0, 0, 100)


@pytest.mark.parametrize(("end", "state"), [(partial(ledger.settle, amount=0), "released"), (ledger.expire, "expired")])
def test_a_late_success_charges_nothing(database: Database, end: Callable[..., str], state: str) -> None:
    grant(database, 100)
    hold_id = hold(database, 60)
    with database.writing() as session:
        entry = end(session, hold_id)
        assert end(session, hold_id) == entry
    refused(database, IllegalMove, ledger.settle, hold_id, 60)
    with database.reading() as session:
        found = ledger.hold_of(session, "t")
    assert found is not None
    assert found.state == state
    assert balance(database) == Balance(100, 0, 0, 100)


def test_refunds_never_give_back_more_than_was_settled(database: Database) -> None:
    grant(database, 100)
    hold_id = hold(database, 60)
    refused(database, IllegalMove, ledger.refund, hold_id, 1, key="r")
    with database.writing() as session:
        ledger.settle(session, hold_id, 50)
        first = ledger.refund(session, hold_id, 20, key="r")
        assert ledger.refund(session, hold_id, 20, key="r") == first
    assert balance(database) == Balance(100, 30, 0, 70)
    refused(database, KeyReused, ledger.refund, hold_id, 21, key="r")
    refused(database, IllegalMove, ledger.refund, hold_id, 31, key="r2")
    with database.writing() as session:
        ledger.refund(session, hold_id, 30, key="r2")
    assert balance(database) == Balance(100, 0, 0, 100)
    refused(database, IllegalMove, ledger.refund, hold_id, 1, key="r3")


def test_a_hold_that_is_not_there(database: Database) -> None:
    for call, args in ((ledger.settle, (1,)), (ledger.settle, (0,)), (ledger.expire, ())):
        refused(database, NotFound, call, "hold_none", *args)
    refused(database, NotFound, ledger.refund, "hold_none", 1, key="r")


@pytest.mark.parametrize("amount", [0, -1, 1.0, True, "1", MAX_CREDITS + 1])
def test_only_positive_integers_move(database: Database, amount: int) -> None:
    grant(database, 100)
    hold_id = hold(database, 60)
    refused(database, SpecInvalid, ledger.grant, "ada", amount, key="x")
    refused(database, SpecInvalid, ledger.hold, "ada", "u", amount, key="x", expires_at=EXPIRES)
    refused(database, SpecInvalid, ledger.refund, hold_id, amount, key="x")
    if type(amount) is not int or amount != 0:
        refused(database, SpecInvalid, ledger.settle, hold_id, amount)


def test_names_and_keys_have_a_length(database: Database) -> None:
    grant(database, 100)
    for key in ("", "k" * 256, "imprint:settle:hold_1"):
        refused(database, SpecInvalid, ledger.grant, "ada", 1, key=key)
    refused(database, SpecInvalid, ledger.grant, "", 1, key="x")
    refused(database, SpecInvalid, ledger.hold, "ada", "", 1, key="x", expires_at=EXPIRES)


def test_an_account_has_a_ceiling_below_where_numbers_become_inexact(database: Database) -> None:
    grant(database, MAX_CREDITS)
    assert balance(database) == Balance(MAX_CREDITS, 0, 0, MAX_CREDITS)
    refused(database, SpecInvalid, ledger.grant, "ada", 1, key="g2")


def test_a_statement_reads_backwards_page_by_page(database: Database) -> None:
    for number in range(7):
        grant(database, 1, key=f"g{number}")
    hold_id = hold(database, 3)
    with database.writing() as session:
        ledger.settle(session, hold_id, 0)
    with database.reading() as session:
        first = ledger.entries(session, "ada", limit=4)
        rest = ledger.entries(session, "ada", limit=100, before_seq=first[-1].seq)
    assert [entry.seq for entry in first + rest] == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert [(entry.kind, entry.amount, entry.hold_id) for entry in first[:2]] == [
        ("release", 3, hold_id),
        ("hold", 3, hold_id),
    ]
    assert all(entry.created_at.utcoffset() == timedelta(0) for entry in first + rest)
