"""An S3 server (moto over real HTTP) whose answers a test can hold back, so that a worker can be killed in mid-step."""

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

KEY, SECRET = "test-key", "test-secret-that-nobody-may-see"


class GatedS3:
    """`hold(method, part)` holds every such request whose path has `part`; `reached` is set when one came."""

    def __init__(self) -> None:
        # Moto keeps one world for the whole process: a bucket of its own keeps servers apart.
        self.bucket = f"imprint-{secrets.token_hex(6)}"
        self._application = DomainDispatcherApplication(create_backend_app)
        self._gate: tuple[str, str] | None = None
        self._open = threading.Event()
        self.reached = threading.Event()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
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

    def hold(self, method: str, part: str) -> None:
        self._open.clear()
        self.reached.clear()
        self._gate = (method, part)

    def release(self) -> None:
        self._gate = None
        self._open.set()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        gate = self._gate
        if gate and environ["REQUEST_METHOD"] == gate[0] and gate[1] in environ["PATH_INFO"]:
            self.reached.set()
            self._open.wait(120)
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
