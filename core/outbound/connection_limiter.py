"""A limit on the calls to other hosts that run at the same time: in total, and for each host."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import Unreachable


class ConnectionLimiter:
    """At most `in_all` calls at once, and at most `per_host` of one owner to one host.

    So a slow host does not block others, and an owner who asks it for much does not block another owner.
    """

    def __init__(self, in_all: int, per_host: int) -> None:
        self._in_all, self._per_host = in_all, per_host
        self._taken: Counter[str] = Counter()
        self._freed = threading.Condition()

    @contextmanager
    def slot(self, host: str, deadline: float, owner_id: str = "") -> Iterator[None]:
        """Wait for a free slot and hold it. Raises Unreachable after `deadline` (monotonic seconds)."""
        key = f"{host} {owner_id}"
        with self._freed:
            left = deadline - time.monotonic()
            if not self._freed.wait_for(lambda: self._is_free(key), max(0.0, left)):
                raise Unreachable(f"{host} was not called: too many downloads were running until the time limit")
            self._taken[key] += 1
        try:
            yield
        finally:
            with self._freed:
                self._taken[key] -= 1
                self._taken += Counter()  # drop hosts with no calls: the names come from requests, and would pile up
                self._freed.notify_all()

    def _is_free(self, key: str) -> bool:
        return self._taken.total() < self._in_all and self._taken[key] < self._per_host
