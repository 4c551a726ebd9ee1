"""The pool of threads that a worker has."""

from typing import Any

import pytest
from celery.concurrency import get_implementation

from tasks.app import app
from tasks.workers.threads import SteadyThreads


def test_it_is_the_pool_of_the_option() -> None:
    assert app.main == "imprint"
    assert get_implementation("threads") is SteadyThreads


@pytest.mark.parametrize("fails", [False, True])
def test_a_task_that_ends_outside_its_body_is_reported(fails: bool) -> None:
    results: list[Any] = []
    failures: list[Any] = []
    pool = SteadyThreads(limit=1)
    pool.start()

    def target() -> str:
        if fails:
            raise ConnectionError("refused")
        return "done"

    pool.apply_async(target, callback=results.append, error_callback=failures.append).f.exception(10)
    pool.stop()
    assert results == ([] if fails else ["done"])
    assert ["refused" in one.traceback for one in failures] == ([True] if fails else [])


def test_a_report_that_is_refused_too_is_logged_and_the_slot_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    pool = SteadyThreads(limit=1)
    pool.start()
    done: list[Any] = []

    def refused(*_: Any) -> None:
        raise ConnectionError("refused")

    pool.apply_async(refused, error_callback=refused)
    pool.apply_async(lambda: "next", callback=done.append).f.result(10)
    pool.stop()
    assert done == ["next"]
    assert [record.message for record in caplog.records] == [
        "a task ended outside its body (ConnectionError): its message is given up",
        "its failure was not reported (ConnectionError)",
    ]
