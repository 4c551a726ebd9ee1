"""Requests that two servers may read differently, sent to the web server itself over raw sockets."""

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from core.settings import Settings
from jobs.owners import accounts
from tests.contract.web.conftest import Api, make_api, served
from tests.hostile.requests import HARMLESS, HIDDEN, REFUSED

_WAIT_S = 60.0


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    settings = Settings(_env_file=None, home=tmp_path_factory.mktemp("home"), web_rate_per_s=1e6)
    yield from make_api(settings)


@pytest.fixture(scope="module")
def server(api: Api) -> Iterator[tuple[str, int]]:
    with served(api) as url:
        host, port = url.removeprefix("http://").split(":")
        yield host, int(port)


@pytest.fixture(scope="module")
def secret(api: Api) -> str:
    return api.token("ada")


class Connection:
    """One connection, and the answers that come over it."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.socket = socket.create_connection(server, timeout=_WAIT_S)
        self.pending = b""

    def send(self, text: str, secret: str) -> None:
        size = str(len(HIDDEN.replace("{auth}", secret)))
        self.socket.sendall(
            text.replace("{auth}", secret).replace("{size}", size).encode("latin-1", "xmlcharrefreplace")
        )

    def answer(self) -> tuple[int, bytes, bytes] | None:
        """Status, headers and body of the next answer; None if the server has closed the connection."""
        while b"\r\n\r\n" not in self.pending:
            try:
                more = self.socket.recv(65536)
            except ConnectionResetError:
                more = b""
            if not more:
                return None
            self.pending += more
        head, _, self.pending = self.pending.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        size = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
        while len(self.pending) < size and (more := self.socket.recv(65536)):
            self.pending += more
        body, self.pending = self.pending[:size], self.pending[size:]
        return int(lines[0].split()[1]), head, body

    def rest(self) -> bytes:
        """All that comes until the server closes the connection."""
        found = self.pending
        with suppress(ConnectionResetError):
            while more := self.socket.recv(65536):
                found += more
        return found

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


@pytest.mark.parametrize("name", REFUSED)
def test_an_ambiguous_request_is_refused_and_ends_its_connection(
    server: tuple[str, int], secret: str, name: str
) -> None:
    with Connection(server) as connection:
        connection.send(REFUSED[name], secret)
        answers = connection.rest().split(b"HTTP/1.1 ")[1:]
    assert len(answers) == 1, "what stands behind it was read as a request"
    assert answers[0].startswith(b"4")
    assert b"granted" not in answers[0]


@pytest.mark.parametrize("name", HARMLESS)
def test_a_trick_changes_nothing(server: tuple[str, int], secret: str, name: str) -> None:
    text, status = HARMLESS[name]
    with Connection(server) as connection:
        connection.send(text + (HIDDEN if "as its body" in name else ""), secret)
        found = connection.answer()
        assert found is not None
        assert found[0] == status, found
        assert b"set-cookie" not in found[1].lower()
        if status == 200:
            assert b'"granted":1000' in found[2]
        # The next answer is to the next request, and not to what the first one carried.
        connection.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", secret)
        after = connection.answer()
        assert after is not None
        assert after[2] == b'{"status":"ok"}'


# ---- a connection after an error ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1000, 200_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_500_leaves_the_connection_to_the_next_request(
    server: tuple[str, int], secret: str, size: int, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of ours before the body was read: the client's next request on the connection is answered."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("hush: a detail of ours")

    monkeypatch.setattr(accounts, "balance", broken)
    body = "x" * size
    framed = f"{size:x}\r\n{body}\r\n0\r\n\r\n" if size else "0\r\n\r\n"
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    head = "GET /api/account HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {auth}\r\n"
    with Connection(server) as connection:
        for _ in range(3):
            connection.send(f"{head}{framing}\r\n\r\n{framed if chunked else body}", secret)
            failed = connection.answer()
            assert failed is not None
            assert failed[0] == 500
            assert b"hush" not in failed[2]
            assert b"content-security-policy" in failed[1].lower()
            connection.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", secret)
            after = connection.answer()
            assert after is not None, "the connection was reset"
            assert after[2] == b'{"status":"ok"}'


@pytest.mark.parametrize(
    ("path", "status"),
    [("/api/influencer/rex/images", 401), ("/api/nothing", 404), ("/api/influencer/rex/lora/train", 401)],
)
def test_a_refusal_before_the_body_was_read_leaves_it_too(server: tuple[str, int], path: str, status: int) -> None:
    with Connection(server) as connection:
        for _ in range(2):
            connection.send(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n{'x' * 200_000}", "")
            refused = connection.answer()
            assert refused is not None
            assert refused[0] == status
            connection.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "")
            after = connection.answer()
            assert after is not None
            assert after[0] == 200
