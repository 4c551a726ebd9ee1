"""The rate limit: a token bucket for each bearer token and owner, in this process.

Several processes have separate buckets, so together they allow as many times the rate. That serves the purpose: one
caller must not crowd out the others on a process. And it costs no round trip.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

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
