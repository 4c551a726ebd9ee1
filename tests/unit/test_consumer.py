"""A worker drops and delays messages by its own clock: a time in a message is of another machine's."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

import celeryconfig
from tasks.arguments import OWN_DELAY
from tasks.rabbitmq import consumer
from tasks.rabbitmq.consumer import _limit_own_delay, _PeriodicTasks

SWEEP, AUDIT = "imprint.sweep", "imprint.audit"


@pytest.fixture
def periodic() -> _PeriodicTasks:
    return _PeriodicTasks({"sweep": {"task": SWEEP, "schedule": 15.0}, "audit": {"task": AUDIT, "schedule": 3600.0}})


def test_of_a_backlog_one_is_run(periodic: _PeriodicTasks) -> None:
    assert [periodic.is_too_soon(SWEEP, 100 + number / 1000) for number in range(200)] == [False] + [True] * 199


def test_each_of_beats_rhythm_is_run(periodic: _PeriodicTasks) -> None:
    assert not any(periodic.is_too_soon(SWEEP, 15.0 * number) for number in range(20))
    assert not periodic.is_too_soon(SWEEP, 15.0 * 20 + 4)
    assert not periodic.is_too_soon(SWEEP, 15.0 * 21)  # after one that came late


def test_an_operator_may_send_the_hourly_audit_again(periodic: _PeriodicTasks) -> None:
    assert not periodic.is_too_soon(AUDIT, 0.0)
    assert periodic.is_too_soon(AUDIT, 30.0)
    assert not periodic.is_too_soon(AUDIT, 61.0)


def test_other_tasks_are_never_dropped(periodic: _PeriodicTasks) -> None:
    assert not any(periodic.is_too_soon("imprint.preprocess", 1.0) for _ in range(5))


def test_the_beat_table_is_what_it_knows() -> None:
    made = _PeriodicTasks(celeryconfig.beat_schedule)
    assert all(not made.is_too_soon(entry["task"], 0.0) for entry in celeryconfig.beat_schedule.values())
    assert all(made.is_too_soon(entry["task"], 0.1) for entry in celeryconfig.beat_schedule.values())


NOW = datetime(2026, 12, 31, 23, 59, 58, tzinfo=UTC)


def due_in_s(eta_s: float, own_delay: object) -> float:
    """In how many seconds a message is due whose sender said `eta_s`."""
    message = SimpleNamespace(headers={"eta": (NOW + timedelta(seconds=eta_s)).isoformat(), OWN_DELAY: own_delay})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consumer, "utcnow", lambda: NOW)
        _limit_own_delay(message)
    return (datetime.fromisoformat(message.headers["eta"]) - NOW).total_seconds()


def test_a_task_sent_again_waits_no_longer_than_its_delay() -> None:
    assert due_in_s(3600 + 5, 5.0) == 5, "the sender's clock is an hour ahead of this one"


def test_its_own_time_stands_where_it_is_sooner() -> None:
    assert due_in_s(2, 5.0) == 2


@pytest.mark.parametrize("delay", [None, "5", -1, 10**9, True, float("nan")])
def test_a_delay_that_is_none_changes_nothing(delay: object) -> None:
    assert due_in_s(1000, delay) == 1000
