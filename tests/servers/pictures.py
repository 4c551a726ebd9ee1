"""A small HTTP server on loopback that serves what a test puts there, and can hold an answer back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class PictureServer:
    """`files` maps paths to bodies. A path in `held` is answered only after `release`; `asked` counts requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.status: dict[str, int] = {}
        self.held: set[str] = set()
        self.asked: dict[str, int] = {}
        self._open = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def put(self, path: str, body: bytes) -> str:
        """Serve `body` at `path`; its URL."""
        self.files[path] = body
        return f"http://{self.address}{path}"

    def release(self) -> None:
        self._open.set()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0]
        self.asked[path] = self.asked.get(path, 0) + 1
        if path in self.held:
            self._open.wait(120)
        status = self.status.get(path, 200 if path in self.files else 404)
        body = self.files.get(path, b"") if status == 200 else b"a foreign body that nobody may repeat"
        try:
            request.send_response(status)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            return  # the client was killed meanwhile: that is what some tests are about


@contextmanager
def picture_server() -> Iterator[PictureServer]:
    """A running server for a `with` block."""
    server = PictureServer()
    server._thread.start()
    try:
        yield server
    finally:
        server.release()
        server._server.shutdown()
        server._server.server_close()
