"""The guard for HTTP requests to addresses that users gave.

Every host is looked up once, all its addresses are checked against the deny list, and the connection goes to one of the
checked addresses. So a name cannot resolve differently between check and call. The Host header and TLS use the name.
There is no proxy, no environment variable, no cookie and no kept connection. One time limit covers everything: look-up,
redirects, slow bodies. A download must also keep a minimum rate, and its time counts for request and host. Errors
name the host only: the rest of the address may be a secret, and the answer is foreign.
"""

import ssl
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from http import HTTPStatus

import httpcore2

from core.errors import AnswerRefused, Unreachable
from core.outbound.addresses import Address, parse_address, parse_host_ports
from core.outbound.connection_limiter import ConnectionLimiter
from core.outbound.download_budget import NOBODY, DownloadBudget, Requester
from core.outbound.http_status import is_retryable
from core.outbound.network import CheckedNetwork, Pace, Resolver, look_up

_MAX_REDIRECTS = 3
_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_DRAINED = 64 * 1024
_AT_ONCE_PER_HOST = 4  # downloads of one owner from one host
_PICTURES = {"Accept": "image/*,*/*;q=0.5"}


class Guard:
    """A client for foreign addresses. Threads can share it.

    `allow_hosts` are the operator's `host:port` pairs, which are called at any address and port. `timeout_s` is the
    time limit of one call. A download has at least `min_bytes_per_s` on average, apart from its first 15 seconds. At
    most `at_once` downloads run at the same time. `resolve` and `tls` are for tests and unusual networks.
    """

    def __init__(
        self,
        *,
        allow_hosts: Sequence[str] = (),
        timeout_s: float = 60.0,
        min_bytes_per_s: int = 0,
        at_once: int = 8,
        budget: DownloadBudget | None = None,
        resolve: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = parse_host_ports(tuple(allow_hosts))
        self._timeout_s = timeout_s
        self._resolve = resolve or look_up
        self._given_tls = tls
        self._min_bytes_per_s = min_bytes_per_s
        self._budget = budget or DownloadBudget(float("inf"), float("inf"))
        self._limiter = ConnectionLimiter(at_once, _AT_ONCE_PER_HOST)

    def check(self, url: str) -> None:
        """Raises AddressRefused for an address that can be refused without I/O."""
        parse_address(url, self._allowed)

    def get_bytes(
        self, url: str, max_bytes: int, requester: Requester = NOBODY, timeout_s: float | None = None
    ) -> bytes:
        """The body at `url`, after at most three redirects. Each redirect is checked like the first address.

        Raises AddressRefused; AnswerRefused (final) for a client error and for a compressed body or one larger than
        `max_bytes`, and if the request's time is used up; Unreachable (may be retried) for timeouts, slow bodies,
        resets, server errors, 408, 425 and 429. At most 4 downloads of an owner from one host run at once; waiting for
        a slot counts towards the time limit, which `timeout_s` may shorten.
        """
        deadline = time.monotonic() + min(self._timeout_s, timeout_s or self._timeout_s)
        address = parse_address(url, self._allowed)
        for _ in range(_MAX_REDIRECTS + 1):
            with (
                self._limiter.slot(address.host, deadline, requester.owner_id),
                self._budget.spending(requester, address.host) as left_s,
                self._answer("GET", address, b"", _PICTURES, self._pace(deadline, left_s)) as answer,
            ):
                if answer.status not in _REDIRECTS:
                    _check_answer(answer, address, max_bytes)
                    return _body(answer, address, max_bytes)
                onward = _header(answer, b"location")
            if not onward:
                raise AnswerRefused(f"{address} redirects without a Location header", {"status": answer.status})
            address = parse_address(address.joined(onward), self._allowed)
        raise AnswerRefused(f"{address} would be redirect {_MAX_REDIRECTS + 1}; at most {_MAX_REDIRECTS} are followed")

    def send(self, method: str, url: str, content: bytes, headers: Mapping[str, str]) -> tuple[int, dict[str, str]]:
        """Send `content` and return status and headers (names in lower case) of the answer, whatever the status.

        Redirects are not followed, and the body is dropped. Raises AddressRefused and Unreachable.
        """
        address = parse_address(url, self._allowed)
        with self._answer(method, address, content, headers, Pace(time.monotonic() + self._timeout_s)) as answer:
            _drain(answer)
            names = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in answer.headers)
            return answer.status, dict(names)

    def _pace(self, deadline: float, left_s: float) -> Pace:
        return Pace(min(deadline, time.monotonic() + left_s), self._min_bytes_per_s)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._given_tls or httpcore2.default_ssl_context()

    @contextmanager
    def _answer(
        self, method: str, address: Address, content: bytes, headers: Mapping[str, str], pace: Pace
    ) -> Generator[httpcore2.Response]:
        """One request on its own connection. Errors of the transport become ours, without their text."""
        sent: list[tuple[bytes | str, bytes | str]] = [
            ("Host", address.netloc),
            ("User-Agent", "imprint"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
            *headers.items(),
        ]
        target = httpcore2.URL(scheme=address.scheme, host=address.host, port=address.port, target=address.target)
        network = CheckedNetwork(self._resolve, address.host_port in self._allowed, pace)
        # `from None`: chained messages quote foreign bytes, and tracebacks are logged.
        try:
            with httpcore2.ConnectionPool(ssl_context=self._tls, network_backend=network) as pool:
                # b"" sends Content-Length: 0, which servers expect of methods with a body.
                body = content if content or method not in ("GET", "HEAD", "DELETE") else None
                with pool.stream(method, target, headers=sent, content=body) as answer:
                    yield answer
        except httpcore2.TimeoutException:
            if pace.is_too_slow:
                raise Unreachable(
                    f"{address} sends less than {self._min_bytes_per_s} bytes a second (IMPRINT_FETCH_MIN_BYTES_PER_S)"
                ) from None
            raise Unreachable(f"{address} did not answer in time") from None
        except httpcore2.ConnectError:
            raise Unreachable(f"{address} cannot be reached") from None
        except httpcore2.LocalProtocolError:
            raise AnswerRefused(f"{address}: the request is not valid HTTP") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError):
            raise Unreachable(f"{address} closed the connection or does not speak HTTP") from None


# ---- answers ----


def _check_answer(answer: httpcore2.Response, address: Address, max_bytes: int) -> None:
    status, details = answer.status, {"status": answer.status}
    if is_retryable(status):
        raise Unreachable(f"{address} answered {status}", details)
    if status != HTTPStatus.OK:
        raise AnswerRefused(f"{address} answered {status}", details)
    # The request asked for identity. A compressed body could unpack to any size.
    if _header(answer, b"content-encoding").strip().lower() not in ("", "identity"):
        raise AnswerRefused(f"{address} sent a compressed body", details)
    size = _header(answer, b"content-length")
    if size.isdigit() and int(size[:20]) > max_bytes:
        raise AnswerRefused(f"{address} has more than {max_bytes} bytes", details)


def _body(answer: httpcore2.Response, address: Address, max_bytes: int) -> bytes:
    body = bytearray()
    for chunk in answer.iter_stream():
        body += chunk
        if len(body) > max_bytes:
            raise AnswerRefused(f"{address} has more than {max_bytes} bytes")
    return bytes(body)


def _drain(answer: httpcore2.Response) -> None:
    """Read a small body to its end, since some servers report a reset; of a large body read only the beginning.

    The status is known already, so a body that ends early changes nothing.
    """
    drained = 0
    with suppress(httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
        for chunk in answer.iter_stream():
            drained += len(chunk)
            if drained > _MAX_DRAINED:
                return


def _header(answer: httpcore2.Response, name: bytes) -> str:
    found = (value for key, value in answer.headers if key.lower() == name)
    return next(found, b"").decode("latin-1")
