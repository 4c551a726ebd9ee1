"""Many processes on one account, one key, one hold: whatever the order, the books stay right."""

from collections import Counter
from datetime import timedelta
from functools import partial
from random import Random

import pytest
from sqlalchemy.orm import Session

from core.clock import utcnow
from core.errors import IllegalMove, ImprintError, InsufficientCredits
from credits import ledger
from credits.audit import audit
from credits.ledger import Balance
from storage.database import Database
from tests.contract.processes import Work, at_once

pytestmark = pytest.mark.both_databases
EXPIRES = utcnow() + timedelta(days=7)
PROCESSES = 16


def hold(amount: int, training_id: str, key: str, owner_id: str = "ada") -> Work:
    return partial(ledger.hold, owner_id=owner_id, training_id=training_id, amount=amount, key=key, expires_at=EXPIRES)


def granted(database: Database, amount: int, owner_id: str = "ada") -> None:
    with database.writing() as session:
        ledger.grant(session, owner_id, amount, key="g")


def books(database: Database, owner_id: str = "ada") -> Balance:
    with database.reading() as session:
        assert audit(session) == []
        return ledger.balance(session, owner_id)


def test_no_more_is_held_than_there_is(database: Database, address: str) -> None:
    granted(database, 100)
    results = at_once(address, [hold(20, f"t{n}", f"h{n}") for n in range(PROCESSES)])
    assert Counter(type(result) for result in results) == {str: 5, InsufficientCredits: PROCESSES - 5}
    assert books(database) == Balance(100, 0, 100, 0)


def test_one_key_makes_one_hold(database: Database, address: str) -> None:
    granted(database, 100)
    results = at_once(address, [hold(20, "t", "h")] * PROCESSES)
    assert len(set(results)) == 1
    assert isinstance(results[0], str)
    assert books(database) == Balance(100, 0, 20, 80)


def test_one_key_opens_one_account_and_grants_once(database: Database, address: str) -> None:
    grant = partial(ledger.grant, owner_id="ada", amount=7, key="welcome")
    results = at_once(address, [grant] * PROCESSES)
    assert len(set(results)) == 1
    assert books(database) == Balance(7, 0, 0, 7)


def test_a_hold_ends_once(database: Database, address: str) -> None:
    granted(database, 100)
    with database.writing() as session:
        hold_id = hold(60, "t", "h")(session)
    ends = [
        partial(ledger.settle, hold_id=hold_id, amount=40),
        partial(ledger.settle, hold_id=hold_id, amount=0),
        partial(ledger.expire, hold_id=hold_id),
        partial(ledger.settle, hold_id=hold_id, amount=50, key="s"),
    ]
    results = at_once(address, ends * (PROCESSES // len(ends)))
    assert Counter(type(result) for result in results) == {str: 4, IllegalMove: PROCESSES - 4}
    assert len({result for result in results if isinstance(result, str)}) == 1
    found = books(database)
    assert found.held == 0
    assert found.spent in (0, 40, 50)


def test_a_training_has_one_hold_whichever_owner_pays(database: Database, address: str) -> None:
    owners = [f"owner{n}" for n in range(8)]
    for owner_id in owners:
        granted(database, 10, owner_id)
    results = at_once(address, [hold(10, "t", "h", owner_id) for owner_id in owners])
    assert Counter(type(result) for result in results) == {str: 1, IllegalMove: len(owners) - 1}
    assert sum(books(database, owner_id).held for owner_id in owners) == 10


def test_refunds_together_give_back_no_more_than_was_settled(database: Database, address: str) -> None:
    granted(database, 100)
    with database.writing() as session:
        hold_id = hold(60, "t", "h")(session)
        ledger.settle(session, hold_id, 60)
    refunds = [partial(ledger.refund, hold_id=hold_id, amount=25, key=f"r{n}") for n in range(8)]
    results = at_once(address, refunds)
    assert Counter(type(result) for result in results) == {str: 2, IllegalMove: 6}
    assert books(database) == Balance(100, 10, 0, 90)


def test_a_busy_account_adds_up(database: Database, address: str) -> None:
    """Eight processes, one account, everything at once; afterwards every movement is in the journal."""
    results = at_once(address, [[partial(_live, worker, turn) for turn in range(12)] for worker in range(8)])
    outcomes = Counter(type(result) for of_worker in results for result in of_worker)
    assert set(outcomes) <= {str, InsufficientCredits}
    assert outcomes[str] >= 8
    found = books(database)
    assert found.granted == found.available + found.held + found.spent


def _live(worker: int, turn: int, session: Session) -> str:
    chance = Random(f"{worker}/{turn}")
    name = f"{worker}/{turn}"
    if turn % 3 == 0:
        return ledger.grant(session, "ada", chance.randint(1, 50), key=f"g{name}")
    hold_id = ledger.hold(session, "ada", f"t{name}", chance.randint(1, 60), key=f"h{name}", expires_at=EXPIRES)
    end = chance.choice((partial(ledger.settle, amount=0), ledger.expire, partial(ledger.settle, amount=1)))
    try:
        return end(session, hold_id)
    except ImprintError as error:
        raise AssertionError(f"a hold of this very transaction did not end: {error}") from error
