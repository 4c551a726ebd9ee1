"""Listeners on loopback that must not be reached, or that never come to an end."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Witness:
    """Listens on a loopback port and counts who comes; what it answers is up to `answer`."""

    def __init__(self, answer: bytes = b"") -> None:
        self.answer = answer
        self.reached = 0
        self.asked: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.reached += 1
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            self.asked.append(connection.recv(65536))
            self.say(connection)

    def say(self, connection: socket.socket) -> None:
        if self.answer:
            connection.sendall(self.answer)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


class Trickle(Witness):
    """Says `answer`, then a byte every now and then for ever."""

    def say(self, connection: socket.socket) -> None:
        connection.sendall(self.answer)
        gone = threading.Event()
        while True:
            try:
                connection.sendall(b"x")
            except OSError:
                return
            gone.wait(0.05)


class Endless(Witness):
    """Says `answer`, then sends as fast as it is taken."""

    sent = 0

    def say(self, connection: socket.socket) -> None:
        connection.sendall(self.answer)
        while self.sent < 1 << 30:
            try:
                self.sent += connection.send(bytes(65536))
            except OSError:
                return


@contextmanager
def witness(answer: bytes = b"") -> Iterator[Witness]:
    made = Witness(answer)
    try:
        yield made
    finally:
        made.close()
