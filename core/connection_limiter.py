"""How many calls to the outside may run at once: in all, and to one host."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import Unreachable


class ConnectionLimiter:
    """At most `in_all` at once, and at most `per_host` to one: a slow host keeps nobody from the others."""

    def __init__(self, in_all: int, per_host: int) -> None:
        self._in_all, self._per_host = in_all, per_host
        self._taken: Counter[str] = Counter()
        self._freed = threading.Condition()

    @contextmanager
    def slot(self, host: str, deadline: float) -> Iterator[None]:
        """Wait for a turn and hold it. Raises Unreachable if none comes before `deadline` (monotonic seconds)."""
        with self._freed:
            left = deadline - time.monotonic()
            if not self._freed.wait_for(lambda: self._is_free(host), max(0.0, left)):
                raise Unreachable(f"{host} was not called: too many downloads are running, and none ended in time")
            self._taken[host] += 1
        try:
            yield
        finally:
            with self._freed:
                self._taken[host] -= 1
                self._taken += Counter()  # hosts of 0 go, for hosts are strangers' words
                self._freed.notify_all()

    def _is_free(self, host: str) -> bool:
        return self._taken.total() < self._in_all and self._taken[host] < self._per_host
