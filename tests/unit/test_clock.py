"""A machine whose clock is off goes by the database server's, and says so once."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

import core.clock
from core.clock import server_clock, utcnow

NOW = 1_796_083_198.0  # two seconds before the end of November 2026


class Machine:
    """The clocks of this machine; they stand still."""

    now, since_start = NOW, 100.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.since_start


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine()
    monkeypatch.setattr(core.clock, "time", made)
    server_clock.forget()
    yield made
    server_clock.forget()


def answer(there: float, took_s: float = 0.0) -> None:
    """A server answers that its time is `there`."""
    server_clock.follow(there, Machine.since_start - took_s, Machine.since_start)


def is_now(truth: float) -> bool:
    return utcnow() == datetime.fromtimestamp(truth, UTC)


@pytest.mark.parametrize("off", [3600.0, -3600.0, 30.0])
def test_the_servers_time_is_taken(off: float) -> None:
    assert is_now(NOW)  # no server has answered
    answer(NOW + off)
    assert is_now(NOW + off)


def test_a_jump_after_the_answer_is_seen_before_the_next_one(machine: Machine) -> None:
    answer(NOW)
    machine.now, machine.since_start = NOW + 3600 + 5, Machine.since_start + 5
    assert is_now(NOW + 5)


def test_a_small_difference_and_a_slow_answer_change_nothing() -> None:
    answer(NOW + 1.9)
    assert is_now(NOW)
    answer(NOW + 3600, took_s=5)
    assert is_now(NOW)


def test_the_difference_is_logged_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        answer(NOW - 3600)
    for _ in range(3):
        answer(NOW)
    assert [record.getMessage() for record in caplog.records] == [
        "this machine's clock is 3600 s ahead of the database server's, and Imprint goes by that one: synchronise both "
        "machines (chrony, timesyncd)",
        "this machine's clock agrees with the database server's again",
    ]
