"""Time that downloads may take: for all pictures of one request, and for the slow ones of an owner from one host."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from core.errors import AnswerRefused, Unreachable

_REQUEST_WINDOW_S, _HOST_WINDOW_S = 24 * 3600.0, 600.0
_MAX_KEYS = 10_000


@dataclass(frozen=True)
class Requester:
    """What a download is for: an owner, and a training or another request of that owner."""

    owner_id: str
    request_id: str


NOBODY = Requester("", "")


class DownloadBudget:
    """The budgets of one process. Threads can share it.

    request_s: seconds that all downloads of one request may take together, repeated attempts included.
    host_s: seconds that an owner's failed downloads from one host may take in ten minutes. After that the host is not
    called for this owner until the ten minutes are over.
    """

    def __init__(self, request_s: float, host_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests = _Spent(request_s, _REQUEST_WINDOW_S, clock)
        self._hosts = _Spent(host_s, _HOST_WINDOW_S, clock)

    @contextmanager
    def spending(self, requester: Requester, host: str) -> Iterator[float]:
        """Count the time of the block; yields the seconds that it may take.

        Raises AnswerRefused if the request has used up its time, Unreachable with its `retry_after_s` if the host has
        used up the owner's.
        """
        of_host = f"{requester.owner_id} {host}"
        left_s = self._requests.left_s(requester.request_id)
        if left_s <= 0:
            raise AnswerRefused(
                f"{host} was not called: the pictures of this request have taken {self._requests.limit_s:g} s to "
                "download (IMPRINT_FETCH_REQUEST_S)"
            )
        if self._hosts.left_s(of_host) <= 0:
            raise Unreachable(
                f"{host} was not called: it was too slow for {self._hosts.limit_s:g} s in all (IMPRINT_FETCH_HOST_S)",
                retry_after_s=self._hosts.ends_in_s(of_host),
            )
        begun = self._clock()
        try:
            yield left_s
        except Unreachable as error:
            if not isinstance(error, AnswerRefused):
                self._hosts.spend(of_host, self._clock() - begun)
            raise
        finally:
            self._requests.spend(requester.request_id, self._clock() - begun)


class _Spent:
    """Seconds spent on each key within a window that begins with the first of them."""

    def __init__(self, limit_s: float, window_s: float, clock: Callable[[], float]) -> None:
        self.limit_s, self._window_s, self._clock = limit_s, window_s, clock
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()  # seconds, and when the window ends
        self._lock = threading.Lock()

    def left_s(self, key: str) -> float:
        with self._lock:
            spent_s, until = self._spent.get(key, (0.0, 0.0))
            return self.limit_s - (spent_s if self._clock() < until else 0.0)

    def ends_in_s(self, key: str) -> float:
        """Seconds until the key's window ends; 0.0 without one."""
        with self._lock:
            return max(self._spent.get(key, (0.0, 0.0))[1] - self._clock(), 0.0)

    def spend(self, key: str, seconds: float) -> None:
        now = self._clock()
        with self._lock:
            spent_s, until = self._spent.pop(key, (0.0, 0.0))
            self._spent[key] = (spent_s + seconds, until) if now < until else (seconds, now + self._window_s)
            while len(self._spent) > _MAX_KEYS:
                self._spent.popitem(last=False)
