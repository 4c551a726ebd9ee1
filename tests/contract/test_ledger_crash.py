"""SIGKILL before and after every statement of hold and settle: all of it happened, or none, and a retry ends well."""

import itertools
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest

from core.clock import utcnow
from credits import ledger
from credits.audit import audit
from storage.database import Database
from tests.contract.processes import Work, killed_at

pytestmark = pytest.mark.both_databases

EXPIRES = utcnow() + timedelta(days=7)


def held(training_id: str) -> Work:
    return partial(ledger.hold, owner_id="ada", training_id=training_id, amount=10, key=training_id, expires_at=EXPIRES)


def points() -> list[str]:
    """More than any movement has; those that it never comes to end the round."""
    statements = [f"{side} {number}" for number in range(1, 30) for side in ("before", "after")]
    return ["before commit", "after commit", *statements]


def killed_everywhere(
    database: Database, address: str, prepare: Callable[[str], Work], happened: Callable[[str], bool]
) -> int:
    """Kill a movement at each point, each time on a training of its own; how many points there were."""
    for number, point in enumerate(points()):
        training_id = f"t{number}"
        work = prepare(training_id)
        if not killed_at(address, point, work):
            return number
        with database.reading() as session:
            assert audit(session) == [], point
        assert happened(training_id) == (point == "after commit"), point
        with database.writing() as session:
            first = work(session)
        with database.writing() as session:
            assert work(session) == first, point
        assert happened(training_id)
        with database.reading() as session:
            assert audit(session) == [], point
    raise AssertionError("there were not enough points")


@pytest.fixture
def granted(database: Database) -> None:
    with database.writing() as session:
        ledger.grant(session, "ada", 100_000, key="g")


@pytest.mark.usefixtures("granted")
def test_hold_is_all_or_nothing(database: Database, address: str) -> None:
    def happened(training_id: str) -> bool:
        with database.reading() as session:
            return ledger.hold_of(session, training_id) is not None

    assert killed_everywhere(database, address, held, happened) >= 2 + 2 * 6
    with database.reading() as session:
        balance = ledger.balance(session, "ada")
    assert balance.held == 10 * sum(1 for _ in itertools.takewhile(happened, (f"t{n}" for n in range(99))))


@pytest.mark.usefixtures("granted")
def test_settle_is_all_or_nothing(database: Database, address: str) -> None:
    def prepare(training_id: str) -> Work:
        with database.writing() as session:
            hold_id = held(training_id)(session)
        return partial(ledger.settle, hold_id=hold_id, amount=7, key=f"settle {training_id}")

    def happened(training_id: str) -> bool:
        with database.reading() as session:
            hold = ledger.hold_of(session, training_id)
        assert hold is not None
        return hold.state == "settled"

    settled = killed_everywhere(database, address, prepare, happened)
    assert settled >= 2 + 2 * 6
    with database.reading() as session:
        # The one past the last point was not killed, so it is settled too.
        assert ledger.balance(session, "ada").spent == 7 * (settled + 1)
