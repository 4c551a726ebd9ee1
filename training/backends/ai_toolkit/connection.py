"""HTTP requests to an ai-toolkit server: retries, limits, and translated errors.

Responses are limited in size and time. Messages never quote them, because the server is not trusted.
"""

import json
import random
import time
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

from core.errors import BackendFailed, BackendUnreachable
from core.outbound.http_status import is_retryable

T = TypeVar("T")

MAX_ANSWER_BYTES = 64 * 2**20  # enough for thousands of jobs, or the whole log of an old server
TRIES = 3
FIRST_DELAY_S = 0.2
# Node closes idle connections after 5 s: drop them earlier, so that none is closed during a request.
KEEPALIVE_S = 4.0


def open_toolkit_client(max_connections: int = 64, timeout_s: float = 30) -> httpx2.Client:
    """An HTTP client for ai-toolkit servers, safe to share between threads: no proxy, no redirects."""
    return httpx2.Client(
        trust_env=False,
        follow_redirects=False,
        timeout=httpx2.Timeout(timeout_s, connect=min(10.0, timeout_s)),
        limits=httpx2.Limits(
            max_connections=max_connections, max_keepalive_connections=max_connections, keepalive_expiry=KEEPALIVE_S
        ),
        headers={"User-Agent": "imprint", "Accept-Encoding": "identity"},
    )


@dataclass(frozen=True)
class ToolkitResponse:
    """An accepted status and the body."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None if it is not JSON, such as a page of a proxy."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def is_error(self) -> bool:
        """Whether ai-toolkit itself reports an error, not a proxy in front of it."""
        data = self.json()
        return isinstance(data, dict) and "error" in data


class ToolkitConnection:
    """Requests to one server."""

    def __init__(self, url: str, token: str | None, http: httpx2.Client) -> None:
        try:
            parsed = httpx2.URL(url.rstrip("/"))
        except (httpx2.InvalidURL, TypeError):
            parsed = httpx2.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.userinfo:
            raise BackendFailed("the address of the ai-toolkit server must start with http:// or https://")
        self.url, self.http = str(parsed).rstrip("/"), http
        self.place = f"the ai-toolkit server at {parsed.netloc.decode('ascii')}"
        if token is not None and (not token or not token.isascii() or not token.isprintable() or " " in token):
            raise BackendFailed("the password of the ai-toolkit server is empty or has characters that are not allowed")
        self._headers = {"Authorization": f"Bearer {token}"} if token is not None else {}

    # ---- one request ----

    def send(
        self,
        method: str,
        path: str,
        *,
        accept: Collection[int] = (200,),
        max_bytes: int = MAX_ANSWER_BYTES,
        patience: float = 1.0,
        **more: Any,
    ) -> ToolkitResponse:
        """Send a request; returns the response if its status is in `accept`.

        patience: the time limit for the response, as a multiple of the client's timeout.
        """
        deadline = time.monotonic() + patience * self._timeout_s()
        with self.stream(method, path, **more) as response:
            body = bytearray()
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > max_bytes:
                    raise BackendFailed(f"{self.place} sent more than {max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise BackendUnreachable(f"{self.place} did not answer in time")
            answer = ToolkitResponse(response.status_code, bytes(body))
        if answer.status not in accept:
            raise self.error_of(answer)
        return answer

    def send_with_retries(self, method: str, path: str, **more: Any) -> ToolkitResponse:
        """Like `send`, with retries if the server cannot be reached. Only for idempotent requests."""
        return with_retries(lambda: self.send(method, path, **more), give_up_s=self._timeout_s() / 2)

    @contextmanager
    def stream(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> Generator[httpx2.Response]:
        """Send a request without reading the body. Translates the errors of the HTTP client, without their messages."""
        # `from None`: the original messages may quote the server, and tracebacks are logged.
        try:
            with self.http.stream(method, self.url + path, headers={**self._headers, **(headers or {})}, **more) as got:
                yield got
        except httpx2.TimeoutException:
            raise BackendUnreachable(f"{self.place} did not answer in time") from None
        except httpx2.ConnectError:
            raise BackendUnreachable(f"{self.place} cannot be reached") from None
        except httpx2.HTTPError:
            raise BackendUnreachable(f"the connection to {self.place} broke") from None

    def error_of(self, answer: ToolkitResponse) -> BackendUnreachable | BackendFailed:
        """The error for a status."""
        status, about = answer.status, {"status": answer.status}
        if status in (401, 403):
            return BackendFailed(f"{self.place} rejects the password (status {status})", about)
        if status == 404 and not answer.is_error:
            return BackendUnreachable(f"no server answers yet behind the proxy of {self.place} (status 404)", about)
        if is_retryable(status):
            return BackendUnreachable(f"{self.place} failed with status {status}", about)
        return BackendFailed(f"{self.place} rejected a request with status {status}", about)

    def unexpected_answer(self) -> BackendFailed:
        return BackendFailed(f"{self.place} sent a response that ai-toolkit's API does not have")

    def _timeout_s(self) -> float:
        return self.http.timeout.read or 30.0


def with_retries(call: Callable[[], T], *, tries: int = TRIES, give_up_s: float = 15.0) -> T:
    """Retry `call` after BackendUnreachable, with delays that double, ±50 %, until `give_up_s`."""
    begun = time.monotonic()
    for number in range(1, tries):
        try:
            return call()
        except BackendUnreachable:
            delay = backoff_s(number)
            if time.monotonic() + delay - begun > give_up_s:
                raise
            time.sleep(delay)
    return call()


def backoff_s(number: int) -> float:
    """Seconds to wait after failure `number`, from 1."""
    return float(FIRST_DELAY_S * 2 ** (number - 1) * random.uniform(0.5, 1.5))  # noqa: S311
