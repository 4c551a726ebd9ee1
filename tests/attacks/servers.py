"""A host that an attacker owns: it sends a byte a second, or takes a webhook and never answers."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class SlowHost:
    """`asked` counts requests, `open` those in progress, `hanging` the webhooks among them."""

    def __init__(self) -> None:
        self.asked = self.open = self.hanging = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with outer._counted():
                    self.send_response(200)
                    self.send_header("Content-Type", "image/png")
                    self.send_header("Content-Length", "1000000")
                    self.end_headers()
                    while not outer._over.wait(1.0):
                        self.wfile.write(b"\x89")
                        self.wfile.flush()

            def do_PATCH(self) -> None:
                with outer._counted(webhooks=1):
                    outer._over.wait(120)

            def log_message(self, *_: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: object) -> None:
                return  # the client gave up: that is what it should do

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def urls(self, count: int, kind: str) -> list[str]:
        """Addresses of `count` pictures, unlike those of another `kind`."""
        return [f"http://{self.address}/{kind}/{number}.png" for number in range(count)]

    @contextmanager
    def _counted(self, webhooks: int = 0) -> Iterator[None]:
        with self._lock:
            self.asked, self.open, self.hanging = self.asked + 1, self.open + 1, self.hanging + webhooks
        try:
            yield
        finally:
            with self._lock:
                self.open, self.hanging = self.open - 1, self.hanging - webhooks


@contextmanager
def slow_host() -> Iterator[SlowHost]:
    """A running slow host for a `with` block."""
    host = SlowHost()
    host._thread.start()
    try:
        yield host
    finally:
        host._over.set()
        host._server.shutdown()
        host._server.server_close()


class Connections:
    """Raw connections to the web process, kept open until the end."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._address = (host, int(port))
        self._open: list[socket.socket] = []
        self._statuses: dict[socket.socket, int] = {}

    def send(self, request: bytes) -> socket.socket:
        """Open a connection and send the beginning of a request."""
        connection = socket.create_connection(self._address, timeout=10)
        self._open.append(connection)
        connection.sendall(request)
        return connection

    def statuses(self, wait_s: float) -> list[int]:
        """The status of each answer that has come, at most `wait_s` after the first look; 0: none yet."""
        for connection in self._open:
            if self._statuses.get(connection):
                continue
            connection.settimeout(wait_s)
            try:
                line = connection.recv(64)
            except TimeoutError:
                line, wait_s = b"", 0.05
            self._statuses[connection] = int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0
        return [self._statuses[connection] for connection in self._open]

    def close(self) -> None:
        for connection in self._open:
            connection.close()
        self._open.clear()


__all__ = ["Connections", "SlowHost", "slow_host"]
