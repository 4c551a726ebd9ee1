"""An S3 server that is slow without end: it sends or reads a byte at a time, and never stops for long."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

Slowness = Literal["head", "body", "close-delimited body", "reading"]
_PAUSE_S = 0.05


class TrickleServer:
    """Every answer trickles in the way of `slowness`, and each connection is served by its own thread."""

    def __init__(self, slowness: Slowness) -> None:
        self._slowness = slowness
        self._ends = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def close(self) -> None:
        self._ends.set()
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            if self._slowness == "reading":
                self._forever(lambda: connection.recv(1))
                return
            connection.recv(1 << 20)
            head = b"HTTP/1.1 200 OK\r\n"
            if self._slowness == "head":
                connection.sendall(head + b"x-slow: ")
                self._forever(lambda: connection.sendall(b"x"))
                return
            length = b"connection: close" if self._slowness == "close-delimited body" else b"content-length: 100000"
            connection.sendall(head + length + b"\r\n\r\n")
            self._forever(lambda: connection.sendall(b"x"))

    def _forever(self, step: "object") -> None:
        while not self._ends.is_set():
            step()  # type: ignore[operator]
            time.sleep(_PAUSE_S)


@contextmanager
def trickle_server(slowness: Slowness) -> Iterator[TrickleServer]:
    """A running server, for a `with` block."""
    made = TrickleServer(slowness)
    try:
        yield made
    finally:
        made.close()
