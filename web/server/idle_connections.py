"""Closes connections on which no request comes: uvicorn waits for the first one, and for all its headers, for ever."""

import time
from collections.abc import Callable, Iterable
from typing import Any

LONGEST_S = 20.0  # for the headers of a request; bodies have limits of their own (web/server/bodies.py)


class IdleConnections:
    """`close_old` is called every few seconds with uvicorn's connections."""

    def __init__(self, longest_s: float = LONGEST_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_s, self._clock = longest_s, clock
        self._since: dict[Any, float] = {}

    def close_old(self, connections: Iterable[Any]) -> None:
        """Close each connection that has had no request in progress for too long."""
        now = self._clock()
        idle = [one for one in connections if one.cycle is None or one.cycle.response_complete]
        self._since = {one: self._since.get(one, now) for one in idle}
        for one, since in self._since.items():
            if now - since > self._longest_s:
                one.transport.close()
