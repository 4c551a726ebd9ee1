"""The limits of a caller, which is a bearer token that acts for an owner: requests a second, and what is open at once.

They are counted in this process. Several processes count separately, so together they allow as many times as much. That
serves the purpose: one caller must not crowd out the others on a process. And it costs no round trip.
"""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from web.problems import RequestRefused

_RETRY_AFTER_S = 5
_MAX_BUCKETS = 10_000  # buckets; the least recently used is dropped first, and is full again by then


class RateLimit:
    """`rate_per_s` requests a second in the long run, twice as many (at least one) at once."""

    def __init__(self, rate_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate_per_s, max(2 * rate_per_s, 1.0), clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def acquire(self, caller: str) -> float:
        """Take a token; 0.0, or the seconds until one is available."""
        now = self._clock()
        with self._lock:
            left, at = self._buckets.pop(caller, (self._burst, now))
            left = min(self._burst, left + (now - at) * self._rate)
            wait_s = 0.0 if left >= 1 else (1 - left) / self._rate
            self._buckets[caller] = (left - 1 if not wait_s else left, now)
            while len(self._buckets) > _MAX_BUCKETS:
                self._buckets.popitem(last=False)
        return wait_s


class OpenLimit:
    """How much of one kind may be open at once: `per_caller` of each caller, and `in_all`. `what` names the kind."""

    def __init__(self, what: str, per_caller: int, in_all: int) -> None:
        self._what, self._per_caller, self._in_all = what, per_caller, in_all
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def acquire(self, caller: str, amount: int = 1) -> None:
        """Take `amount`. Raises RequestRefused: 429 if the caller has too much open, 503 if all together have."""
        with self._lock:
            if self._open[caller] + amount > self._per_caller:
                self._refuse("rate_limited", f"this caller has too many {self._what} at the same time")
            if self._open.total() + amount > self._in_all:
                self._refuse("unavailable", f"the service has too many {self._what} at the same time")
            self._open[caller] += amount

    def release(self, caller: str, amount: int = 1) -> None:
        """Give back what `acquire` took."""
        with self._lock:
            self._open[caller] -= amount
            self._open += Counter()  # drop callers with nothing open

    @contextmanager
    def hold(self, caller: str, amount: int = 1) -> Iterator[None]:
        """Hold `amount` while the block runs. Raises RequestRefused."""
        self.acquire(caller, amount)
        try:
            yield
        finally:
            self.release(caller, amount)

    def _refuse(self, code: str, detail: str) -> None:
        self._open += Counter()
        raise RequestRefused(code, f"{detail}; try again when one has ended", {"Retry-After": str(_RETRY_AFTER_S)})
