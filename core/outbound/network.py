"""The network of the guard: connections to checked addresses only, in the time that a call has left."""

import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpcore2

from core.errors import AddressRefused, AnswerRefused
from core.outbound.addresses import denied

Resolver = Callable[[str, int], list[str]]

_CONNECT_S = 10.0  # for one of several addresses, so that there is time for the next
_GRACE_S = 15.0  # before the minimum rate counts: connecting, and a host that makes the picture when it is asked


class Pace:
    """How long a call may still take: until its deadline, and not longer than its bytes take at the minimum rate."""

    def __init__(self, deadline: float, min_bytes_per_s: int = 0) -> None:
        self._deadline, self._rate = deadline, min_bytes_per_s
        self._begun = time.monotonic()
        self.received_bytes = 0

    def left_s(self, error: type[httpcore2.TimeoutException]) -> float:
        left = min(self._deadline, self._rate_until()) - time.monotonic()
        if left <= 0:
            raise error
        return left

    @property
    def is_too_slow(self) -> bool:
        """Whether the minimum rate, and not the deadline, ends the call now."""
        return time.monotonic() >= self._rate_until()

    def _rate_until(self) -> float:
        return self._begun + _GRACE_S + self.received_bytes / self._rate if self._rate else float("inf")


class CheckedNetwork(httpcore2.NetworkBackend):
    """Connects to checked addresses only, in the time that is left."""

    def __init__(self, resolve: Resolver, may_be_private: bool, pace: Pace) -> None:
        self._resolve = resolve
        self._may_be_private = may_be_private
        self._pace = pace
        self._tcp = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        found = self._found(host, port)
        for number, ip in enumerate(found, start=1):
            left = self._pace.left_s(httpcore2.ConnectTimeout)
            try:
                # `ip` is an IP address, so there is no look-up here.
                stream = self._tcp.connect_tcp(
                    ip, port, left if number == len(found) else min(left, _CONNECT_S), None, socket_options or ()
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if number == len(found):
                    raise
            else:
                return _PacedStream(stream, self._pace)
        raise httpcore2.ConnectError("no address")

    def _found(self, host: str, port: int) -> list[str]:
        """The addresses of the host, all of them checked."""
        found = _in_time(lambda: self._resolve(host, port), self._pace.left_s(httpcore2.ConnectTimeout))
        for ip in found:
            # One bad address among good ones is an attack, not an accident.
            if not self._may_be_private and (why := denied(ip)):
                raise AddressRefused(f"{host} has an address that is not public ({why})")
        return found


class _PacedStream(httpcore2.NetworkStream):
    """A connection on which each operation has the time that is left, so that a slow trickle cannot extend it."""

    def __init__(self, inner: httpcore2.NetworkStream, pace: Pace) -> None:
        self._inner = inner
        self._pace = pace

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._inner.read(max_bytes, self._pace.left_s(httpcore2.ReadTimeout))
        self._pace.received_bytes += len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), 1 << 16):
            left = self._pace.left_s(httpcore2.WriteTimeout)
            self._inner.write(buffer[start : start + (1 << 16)], left)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = self._pace.left_s(httpcore2.ConnectTimeout)
        try:
            return _PacedStream(self._inner.start_tls(ssl_context, server_hostname, left), self._pace)
        except httpcore2.ConnectError as error:
            # Detected here, since the pool drops the cause: a retry would meet the same certificate.
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise AnswerRefused(f"{server_hostname} has no valid certificate") from None
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def look_up(host: str, port: int) -> list[str]:
    """The addresses of a name, in the system's order, each once."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore2.ConnectError("the name cannot be looked up") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _in_time(work: Callable[[], list[str]], timeout_s: float) -> list[str]:
    """Run `work` in a thread, and abandon the thread after `timeout_s`: getaddrinfo has no timeout."""
    outcome: queue.SimpleQueue[list[str] | httpcore2.ConnectError] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(work())
        except httpcore2.ConnectError as error:
            outcome.put(error)

    threading.Thread(target=run, name="look-up", daemon=True).start()
    try:
        found = outcome.get(timeout=timeout_s)
    except queue.Empty:
        raise httpcore2.ConnectTimeout("the look-up took too long") from None
    if isinstance(found, httpcore2.ConnectError):
        raise found
    return found
