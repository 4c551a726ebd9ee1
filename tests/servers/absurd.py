"""An ai-toolkit server that answers with JSON that a test chooses: numbers and texts that no honest server sends."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class AbsurdServer:
    """`answers` maps the beginning of a path to a body: JSON as text, so that it may have 1e999 and 2^70.

    Of several beginnings the longest counts. Any other path is a 404.
    """

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        answers = self.answers

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                found = max((start for start in answers if self.path.startswith(start)), key=len, default=None)
                body = (answers[found] if found else "null").encode()
                self.send_response(200 if found else 404)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def has_job(self, name: str, **fields: str) -> None:
        """List one running job; `fields` are JSON texts."""
        row = {"id": '"x"', "name": json.dumps(name), "status": '"running"', "step": "1", "info": '"Training"'} | fields
        listed = "{" + ", ".join(f'"{key}": {value}' for key, value in row.items()) + "}"
        self.answers["/api/jobs?"] = listed
        self.answers["/api/jobs"] = f'{{"jobs": [{listed}]}}'

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def absurd_server() -> Iterator[AbsurdServer]:
    """A running server, for a `with` block."""
    made = AbsurdServer()
    try:
        yield made
    finally:
        made.close()
