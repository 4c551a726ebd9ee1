"""An S3 server (moto over real HTTP) whose answers a test can hold back, refuse or cut off in mid-step."""

import random
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

KEY, SECRET = "test-key", "test-secret-that-nobody-may-see"
# A refusal; a connection cut before anything was done; one cut after it was done, so that only the answer is lost.
Trouble = Literal["error", "reset", "lost-answer"]


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object) -> None:
        return


class GatedS3:
    """`hold(method, part)` holds every such request whose path has `part`, or the first; `reached`: one came.

    `spoil(trouble, share)` makes that share of all requests fail, until `release`.
    """

    def __init__(self) -> None:
        # Moto keeps one world for the whole process: a bucket of its own keeps servers apart.
        self.bucket = f"imprint-{secrets.token_hex(6)}"
        self._application = DomainDispatcherApplication(create_backend_app)
        self._gate: tuple[str, str] | None = None
        self._first_only = False
        self._trouble: tuple[Trouble, float] | None = None
        self._open = threading.Event()
        self.reached = threading.Event()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """The settings of a site that keeps its objects here."""
        return {
            "IMPRINT_STORE_URL": f"s3://{self.bucket}/imprint",
            "IMPRINT_S3_ENDPOINT_URL": self.endpoint,
            "IMPRINT_S3_ACCESS_KEY_ID": KEY,
            "IMPRINT_S3_SECRET_ACCESS_KEY": SECRET,
        }

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def hold(self, method: str, part: str, *, first_only: bool = False) -> None:
        self._open.clear()
        self.reached.clear()
        self._first_only = first_only
        self._gate = (method, part)

    def spoil(self, trouble: Trouble, share: float = 1.0) -> None:
        self._trouble = (trouble, share)

    def release(self) -> None:
        self._gate = self._trouble = None
        self._open.set()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        gate = self._gate
        if gate and environ["REQUEST_METHOD"] == gate[0] and gate[1] in environ["PATH_INFO"]:
            if self._first_only:
                self._gate = None
            self.reached.set()
            self._open.wait(240)
        trouble, share = self._trouble or (None, 0.0)
        if trouble is None or random.random() >= share:
            return self._done(environ, start_response)
        if trouble == "error":
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if trouble == "lost-answer":
            list(self._done(environ, lambda *_: None))
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError("as the test wants it")

    def _done(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer: Iterable[bytes] = self._application(environ, start_response)
        return answer


@contextmanager
def gated_s3() -> Iterator[GatedS3]:
    """A running server with an empty bucket, for a `with` block."""
    server = GatedS3()
    server._thread.start()
    try:
        server.client().create_bucket(Bucket=server.bucket)
        yield server
    finally:
        server.release()
        server._server.shutdown()
        server._server.server_close()
