"""ConnectionLimiter: so many at once in all, so many to one host, and every one is given back."""

import threading
import time
from collections import Counter

import pytest

from core.errors import Unreachable
from core.outbound.connection_limiter import ConnectionLimiter


def test_never_more_than_allowed() -> None:
    limiter, lock = ConnectionLimiter(in_all=3, per_host=2), threading.Lock()
    inside: Counter[str] = Counter()
    most: Counter[str] = Counter()
    all_in = threading.Barrier(3)

    def call(host: str, meets: bool) -> None:
        with limiter.slot(host, time.monotonic() + 60):
            with lock:
                inside[host] += 1
                most[host] = max(most[host], inside[host])
                most["in all"] = max(most["in all"], inside.total())
            if meets:  # so that all the limiter there are were taken at once, however the threads are scheduled
                all_in.wait(60)
            threading.Event().wait(0.005)
            with lock:
                inside[host] -= 1

    calls = [("one", True), ("one", True), ("other", True), *((host, False) for host in ["one", "other", "third"] * 10)]
    threads = [threading.Thread(target=call, args=one) for one in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert inside.total() == 0
    assert most["in all"] == 3
    assert max(most[host] for host in ("one", "other", "third")) == 2


def test_no_turn_in_time_may_be_retried_and_an_error_gives_its_turn_back() -> None:
    limiter = ConnectionLimiter(in_all=1, per_host=1)
    with limiter.slot("a", time.monotonic() + 60), pytest.raises(Unreachable, match="b was not called") as raised:
        limiter.slot("b", time.monotonic() + 0.02).__enter__()
    assert raised.value.retryable
    with pytest.raises(KeyError), limiter.slot("a", time.monotonic()):
        raise KeyError
    with limiter.slot("a", time.monotonic() - 1):
        pass
    assert not limiter._taken
