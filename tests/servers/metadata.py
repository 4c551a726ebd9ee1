"""A stand-in for the metadata server of a spot machine on Amazon EC2 or Google Compute Engine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ACTION = '{"action": "terminate", "time": "2026-11-29T06:00:00Z"}'


class Metadata:
    """What the server knows: whether the machine is to be taken away, and which token is valid."""

    def __init__(self) -> None:
        self.is_noticed = False
        self.token = "token-1"
        self.port = 0

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which libraries of the clouds find the server."""
        return {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{self.port}/",
            "GCE_METADATA_HOST": f"127.0.0.1:{self.port}",
        }

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        match method, path:
            case "PUT", "/latest/api/token" if "x-aws-ec2-metadata-token-ttl-seconds" in headers:
                return 200, self.token
            case "GET", "/latest/meta-data/spot/instance-action":
                if headers.get("x-aws-ec2-metadata-token") != self.token:
                    return 401, ""
                return (200, ACTION) if self.is_noticed else (404, "not found")
            case "GET", "/computeMetadata/v1/instance/preempted":
                if headers.get("metadata-flavor") != "Google":
                    return 403, ""
                return 200, "TRUE" if self.is_noticed else "FALSE"
        return 400, ""


@contextmanager
def metadata_server() -> Iterator[Metadata]:
    """Serve on loopback while the block runs."""
    metadata = Metadata()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = metadata.answer(
                self.command, self.path, {name.lower(): value for name, value in self.headers.items()}
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_PUT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    metadata.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield metadata
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
