"""Any sequence of movements does to the real ledger what it does to a plain model, errors included."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.orm import Session

from core.clock import utcnow
from core.errors import ImprintError
from core.ids import new_id
from credits import ledger
from credits.audit import audit
from storage.database import Database
from tests.contract.ledger_model import STATES, Model, Refusal

# Few names and small amounts, so that keys, trainings and limits are met again and again.
OWNERS = st.sampled_from(["ada", "bob"])
TRAININGS = st.sampled_from(["t1", "t2", "t3", "t4", "t5"])
KEYS = st.sampled_from(["k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8"])
AMOUNTS = st.integers(1, 30)


class LedgerMachine(RuleBasedStateMachine):
    """The real ledger beside the model. Every run has owners of its own: the journal cannot be emptied."""

    database: Database
    holds: Bundle[str] = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.run = new_id("run")

    def mine(self, name: str) -> str:
        return f"{self.run}/{name}"

    def compare(self, expected: Refusal | str | None, move: Callable[[Session], str]) -> str | None:
        """Make the move; the id if it is new. A caller who commits after an error must have stored nothing."""
        with self.database.writing() as session:
            if isinstance(expected, type):
                with pytest.raises(ImprintError) as refusal:
                    move(session)
                assert refusal.type is expected
                return None
            got = move(session)
        if expected is not None:
            assert got == expected
            return None
        return got

    @rule(owner=OWNERS, amount=AMOUNTS, key=KEYS)
    def grant(self, owner: str, amount: int, key: str) -> None:
        expected = self.model.expect_grant(owner, amount, key)
        entry = self.compare(expected, lambda session: ledger.grant(session, self.mine(owner), amount, key=key))
        if entry is not None:
            self.model.granted_now(owner, amount, key, entry)

    @rule(target=holds, owner=OWNERS, training=TRAININGS, amount=AMOUNTS, key=KEYS)
    def hold(self, owner: str, training: str, amount: int, key: str) -> MultipleResults[str] | str:
        def move(session: Session) -> str:
            expires_at = utcnow() + timedelta(days=1)
            return ledger.hold(session, self.mine(owner), self.mine(training), amount, key=key, expires_at=expires_at)

        hold_id = self.compare(self.model.expect_hold(owner, training, amount, key), move)
        if hold_id is None:
            return multiple()
        self.model.held_now(owner, training, amount, key, hold_id)
        return hold_id

    @rule(hold_id=holds, amount=st.integers(0, 35), key=st.none() | KEYS)
    def settle(self, hold_id: str, amount: int, key: str | None) -> None:
        kind = "settle" if amount else "release"
        self.end(hold_id, kind, amount, key, lambda session: ledger.settle(session, hold_id, amount, key=key))

    @rule(hold_id=holds)
    def settle_whole(self, hold_id: str) -> None:
        amount = self.model.holds[hold_id].amount
        self.end(hold_id, "settle", amount, None, lambda session: ledger.settle(session, hold_id, amount))

    @rule(hold_id=holds)
    def release(self, hold_id: str) -> None:
        self.end(hold_id, "release", 0, None, lambda session: ledger.settle(session, hold_id, 0))

    @rule(hold_id=holds)
    def expire(self, hold_id: str) -> None:
        self.end(hold_id, "expire", 0, None, lambda session: ledger.expire(session, hold_id))

    def end(self, hold_id: str, kind: str, amount: int, key: str | None, move: Callable[[Session], str]) -> None:
        entry = self.compare(self.model.expect_end(hold_id, kind, amount, key), move)
        if entry is not None:
            self.model.ended_now(hold_id, kind, amount, key, entry)

    @rule(hold_id=holds, amount=st.integers(1, 20), key=KEYS)
    def refund(self, hold_id: str, amount: int, key: str) -> None:
        expected = self.model.expect_refund(hold_id, amount, key)
        entry = self.compare(expected, lambda session: ledger.refund(session, hold_id, amount, key=key))
        if entry is not None:
            self.model.refunded_now(hold_id, amount, key, entry)

    @invariant()
    def agrees(self) -> None:
        with self.database.reading() as session:
            for owner in ("ada", "bob"):
                found = ledger.balance(session, self.mine(owner))
                assert (found.granted, found.spent, found.held, found.available) == self.model.sums(owner)
                assert found.available + found.held + found.spent == found.granted

    def teardown(self) -> None:
        with self.database.reading() as session:
            assert audit(session) == []
            for owner in ("ada", "bob"):
                entries = ledger.entries(session, self.mine(owner), limit=1000)
                assert [entry.seq for entry in entries] == list(range(self.model.entries.get(owner, 0), 0, -1))
            states = {hold_id: (hold.state, hold.settled, hold.refunded) for hold_id, hold in self.model.holds.items()}
            found = filter(None, (ledger.hold_of(session, self.mine(f"t{number}")) for number in range(1, 6)))
            assert {hold.id: (hold.state, hold.settled, hold.refunded) for hold in found} == states
            assert {state for state, _, _ in states.values()} <= {"held", *STATES.values()}


def test_the_ledger_does_what_a_plain_model_does(database: Database) -> None:
    run_state_machine_as_test(
        type("Machine", (LedgerMachine,), {"database": database}),
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
