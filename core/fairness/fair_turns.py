"""A limit on what runs at once, for which owners wait in turn."""

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager


class FairTurns:
    """At most `at_once` blocks run. When one ends, the owner that has waited longest for a turn gets the next one.

    So an owner with a hundred things to do gets every other turn while one other owner waits.
    """

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: OrderedDict[str, deque[threading.Event]] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, owner_id: str) -> Iterator[None]:
        """Wait for a turn of this owner and hold it."""
        turn = None
        with self._lock:
            if self._free:
                self._free -= 1
            else:
                turn = threading.Event()
                self._waiting.setdefault(owner_id, deque()).append(turn)
        if turn is not None:
            turn.wait()
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            owner_id, turns = self._waiting.popitem(last=False)
            turns.popleft().set()
            if turns:
                self._waiting[owner_id] = turns
