"""An application's end of webhooks: a small HTTP server on loopback that keeps what it gets and answers as told."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks.webhooks import Webhook


@dataclass(frozen=True)
class Received:
    """One request, as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    answered: int

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    def verified(self, secret: str) -> dict[str, Any]:
        """The body, if the standard's own package finds the signature right; else its WebhookVerificationError."""
        found: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return found


class Receiver:
    """`refuse(status)` answers the next request with that status and `headers`; all others are answered with 204.

    While `refuses_first` is set, the first attempt of every message is answered with that status; while `always` is
    set, every request, and that `slow_s` later.
    """

    def __init__(self) -> None:
        self.got: list[Received] = []
        self.refuses_first: int | None = None
        self.always: int | None = None
        self.slow_s = 0.0
        self._refusals: list[tuple[int, dict[str, str]]] = []
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PATCH(self) -> None:
                outer._answer(self)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}/app"

    def refuse(self, *statuses: int, headers: dict[str, str] | None = None) -> None:
        self._refusals.extend((status, headers or {}) for status in statuses)

    def about(self, job_id: str) -> list[Received]:
        """What came about one job, in order."""
        return [one for one in self.got if one.content["data"]["training_id"] == job_id]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["content-length"]))
        with self._lock:
            headers = {name.lower(): value for name, value in request.headers.items()}
            status, more = self._refusals.pop(0) if self._refusals else (204, {})
            if self.refuses_first and headers["webhook-id"] not in self._seen:
                status = self.refuses_first
            status = self.always or status
            self._seen.add(headers["webhook-id"])
            self.got.append(Received(request.command, request.path, headers, body, status))
        time.sleep(self.slow_s)
        request.send_response(status)
        for name, value in more.items():
            request.send_header(name, value)
        request.send_header("Content-Length", "0")
        request.end_headers()


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A running receiver for a `with` block."""
    made = Receiver()
    made._thread.start()
    try:
        yield made
    finally:
        made._server.shutdown()
        made._thread.join()
        made._server.server_close()
