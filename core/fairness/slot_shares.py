"""Turns between owners for the slots of a worker that calls addresses of owners."""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

_SHARE = 3  # an owner alone gets three quarters of the slots; with more owners, each gets less
_SHORTEST_GAP_S, _LONGEST_GAP_S, _LONGEST_WAIT_S = 0.05, 1.0, 60.0
_MAX_WAITING = 10_000  # owners whose work was turned away; the one that waited longest is forgotten first


class SlotShares:
    """An owner may take a slot while it has fewer than three times as many as are free.

    So an owner alone may use most slots, no owner can take all of them, and a slot is free for an owner that comes new,
    however slow the others' hosts are. `total` is the number of slots; None: they are not shared.
    """

    def __init__(self, total: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self._clock = clock
        self._taken: Counter[str] = Counter()
        # When an owner that has slots gave one back, or took its first one; and the mean time between such moments.
        self._moved: dict[str, tuple[float, float]] = {}
        self._comes_back: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def is_any_taken(self) -> bool:
        """Whether an owner has a slot now."""
        with self._lock:
            return self._taken.total() > 0

    def take(self, owner_id: str) -> float:
        """Take a slot for `owner_id`; 0.0, or the seconds after which the owner may ask again.

        What is turned away comes back one by one, so that a thousand requests of an owner do not come back at once. It
        comes as often as the owner's slots become free: each time costs the worker as much as a small task.
        """
        with self._lock:
            now = self._clock()
            if self.total is None or self._taken[owner_id] < _SHARE * max(self.total - self._taken.total(), 0):
                self._taken[owner_id] += 1
                self._moved.setdefault(owner_id, (now, 0.0))
                return 0.0
            self._taken += Counter()  # drop the owner that has no slot
            at = max(self._comes_back.pop(owner_id, now), now) + self._gap_s(owner_id, now)
            self._comes_back[owner_id] = min(at, now + _LONGEST_WAIT_S)
            while len(self._comes_back) > _MAX_WAITING:
                self._comes_back.popitem(last=False)
            return self._comes_back[owner_id] - now

    def give_back(self, owner_id: str) -> None:
        """Give back a slot that `take` gave."""
        with self._lock:
            self._taken[owner_id] -= 1
            self._taken += Counter()
            if owner_id in self._taken:
                now, (moved_at, mean_s) = self._clock(), self._moved[owner_id]
                self._moved[owner_id] = now, (mean_s + now - moved_at) / 2
            else:
                self._moved.pop(owner_id, None)

    def _gap_s(self, owner_id: str, now: float) -> float:
        """How long it takes until the next of the owner's slots becomes free, as far as the past says."""
        moved_at, mean_s = self._moved.get(owner_id, (now, 0.0))
        return min(max(mean_s, now - moved_at, _SHORTEST_GAP_S), _LONGEST_GAP_S)
