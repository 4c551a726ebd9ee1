"""A proxy in front of an HTTP server that holds back what a test chooses, so that a client is killed in mid-call."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Hold:
    """Requests with `method` and `part` in their path: held before they reach the server, or their answer is."""

    method: str
    part: str
    when: str  # before, after, middle (half of the answer's body has been sent)


class Gate:
    """`hold` the next request of a kind; `reached` is set when it came; `release` lets all through."""

    def __init__(self, server_url: str) -> None:
        self._server = urlsplit(server_url)
        self._hold: Hold | None = None
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.reached = threading.Event()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                gate._pass(self)

            do_POST = do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def hold(self, hold: Hold) -> None:
        self._open.clear()
        self.reached.clear()
        self._hold = hold

    def release(self) -> None:
        self._hold = None
        self._open.set()

    def _stop(self, when: str, request: BaseHTTPRequestHandler) -> None:
        """Waits here if this is the request to be held. The first only: those of other workers pass."""
        with self._lock:
            held = self._hold
            if held is None or held.when != when or held.method != request.command or held.part not in request.path:
                return
            self._hold = None
        self.reached.set()
        self._open.wait(120)

    def _pass(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        self._stop("before", request)
        server = http.client.HTTPConnection(self._server.hostname or "", self._server.port, timeout=60)
        try:
            server.request(request.command, request.path, body, dict(request.headers.items()))
            answer = server.getresponse()
            data = answer.read()
        finally:
            server.close()
        self._stop("after", request)
        with suppress(OSError):  # the client is dead
            request.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    request.send_header(name, value)
            if "content-length" not in answer.headers:
                request.send_header("content-length", str(len(data)))
            request.end_headers()
            half = len(data) // 2
            request.wfile.write(data[:half])
            self._stop("middle", request)
            request.wfile.write(data[half:])


@contextmanager
def gate(server_url: str) -> Iterator[Gate]:
    """A running gate in front of `server_url`, for a `with` block."""
    made = Gate(server_url)
    made._thread.start()
    try:
        yield made
    finally:
        made.release()
        made._http.shutdown()
        made._http.server_close()
