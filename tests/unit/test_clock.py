"""A machine whose clock is off goes by the database server's, and says so once."""

import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from core.clock import server_clock, utcnow


@pytest.fixture(autouse=True)
def no_server() -> Iterator[None]:
    server_clock.forget()
    yield
    server_clock.forget()


def answer(there: float, took_s: float = 0.01) -> None:
    """A server answers that its time is `there`."""
    now = time.monotonic()
    server_clock.follow(there, now - took_s, now)


def off_s(truth: float) -> float:
    return abs((utcnow() - datetime.fromtimestamp(truth, UTC)).total_seconds())


@pytest.mark.parametrize("off", [3600.0, -3600.0, 30.0])
def test_the_servers_time_is_taken(off: float) -> None:
    truth = time.time() + off
    assert off_s(truth) > abs(off) - 1  # no server has answered
    answer(truth)
    assert off_s(truth) < 1


def test_a_jump_after_the_answer_is_seen_before_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    answer(real())
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    assert off_s(real()) < 1


def test_a_small_difference_and_a_slow_answer_change_nothing() -> None:
    answer(time.time() + 1)
    assert off_s(time.time()) < 0.5
    answer(time.time() + 3600, took_s=5)
    assert off_s(time.time()) < 0.5


def test_the_difference_is_logged_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        answer(time.time() - 3600)
    for _ in range(3):
        answer(time.time())
    assert [record.getMessage() for record in caplog.records] == [
        "this machine's clock is 3600 s ahead of the database server's, and Imprint goes by that one: synchronise both "
        "machines (chrony, timesyncd)",
        "this machine's clock agrees with the database server's again",
    ]
