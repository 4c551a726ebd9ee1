"""A wall clock for S3 calls: boto3's timeouts bound one read of the socket, so an answer that trickles never ends.

A call runs inside `limited`. When its time is over, a timer shuts down the socket that it uses, and the call fails.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

_LONGEST_S = 6 * 3600.0  # whatever length a server announces
_calls = threading.local()  # the deadline of the call that this thread makes


class Deadline:
    """The time limit of one call, on the thread that makes it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.is_over = False
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self._socket: Any = None
        self._connection: Any = None
        self._has_ended = False
        self._timer = self._start_timer()

    def extend(self, seconds: float) -> None:
        """Allow more time, once it is known how much there is to read."""
        self.seconds = min(self.seconds + seconds, _LONGEST_S)

    def use(self, connection: Any) -> None:
        """The call uses this connection now. Raises TimeoutError if its time is over: boto3 tries again by itself."""
        with self._lock:
            if self.is_over:
                raise TimeoutError("the time of this call is over")
            self._connection, self._socket = connection, connection.sock

    def end(self) -> None:
        """The call has ended: its connection may be another's by now."""
        with self._lock:
            self._has_ended = True
            self._connection = self._socket = None
        self._timer.cancel()

    def _start_timer(self) -> threading.Timer:
        timer = threading.Timer(max(self._begun + self.seconds - time.monotonic(), 0.0), self._expire)
        timer.daemon = True
        timer.start()
        return timer

    def _expire(self) -> None:
        with self._lock:
            if self._has_ended:
                return
            if time.monotonic() < self._begun + self.seconds:
                self._timer = self._start_timer()  # it was extended
                return
            self.is_over = True
            # The connection has no socket any more while the last answer on it is read.
            used: Any = self._socket or getattr(self._connection, "sock", None)
            with suppress(OSError, TypeError):  # closed already, or not open yet
                # Not SSLSocket's own method, which another thread must not call while this one reads.
                socket.socket.shutdown(used, socket.SHUT_RDWR)


@contextmanager
def limited(seconds: float) -> Iterator[Deadline]:
    """Bound the calls of this thread inside the block. They fail with an error of boto3, and `is_over` is set."""
    before = getattr(_calls, "deadline", None)
    deadline = _calls.deadline = Deadline(seconds)
    try:
        yield deadline
    finally:
        _calls.deadline = before
        deadline.end()


def bound(client: Any) -> None:
    """Make every connection of a boto3 client report to the deadline of its call."""
    # botocore has no public way to choose the class of its connections. tests/contract/objects tests this one.
    client._endpoint.http_session._pool_classes_by_scheme.update(http=_HttpPool, https=_HttpsPool)


class _Reporting:
    def request(self, *args: Any, **kwargs: Any) -> Any:
        deadline: Deadline | None = getattr(_calls, "deadline", None)
        if deadline is not None:
            deadline.use(self)
        answer = super().request(*args, **kwargs)  # type: ignore[misc]
        if deadline is not None:
            deadline.use(self)  # it has its socket now
        return answer


class _HttpConnection(_Reporting, AWSHTTPConnection):  # type: ignore[misc]
    pass


class _HttpsConnection(_Reporting, AWSHTTPSConnection):  # type: ignore[misc]
    pass


class _HttpPool(AWSHTTPConnectionPool):  # type: ignore[misc]
    ConnectionCls = _HttpConnection


class _HttpsPool(AWSHTTPSConnectionPool):  # type: ignore[misc]
    ConnectionCls = _HttpsConnection
