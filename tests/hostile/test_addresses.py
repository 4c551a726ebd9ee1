"""Hostile addresses: each is refused, and a witness on loopback is never reached."""

import gzip
import socket
import threading
import time
from pathlib import Path

import pytest

from core.errors import AddressRefused, ImageRefused, ImageUnreachable, Unreachable
from core.outbound.addresses import denied
from core.outbound.guard import Guard
from storage.objects.local import LocalStore
from storage.sources import Sources
from tests.hostile.addresses import DENIED, PUBLIC, REFUSED_BY_LOOKS
from tests.hostile.witness import Endless, Trickle, witness
from tests.site import until

SECRET = "X-Amz-Signature=planted"


@pytest.mark.parametrize("ip", DENIED)
def test_it_is_denied(ip: str) -> None:
    assert denied(ip)


@pytest.mark.parametrize("ip", PUBLIC)
def test_it_is_public(ip: str) -> None:
    assert denied(ip) is None


def never(_host: str, _port: int) -> list[str]:
    raise AssertionError("nothing was to be looked up")


@pytest.mark.parametrize("url", REFUSED_BY_LOOKS)
def test_it_is_refused_before_any_look_up(url: str, tmp_path: Path) -> None:
    guard = Guard(timeout_s=5, resolve=never)
    with pytest.raises(AddressRefused):
        guard.get_bytes(url, 100)
    with pytest.raises(AddressRefused):
        guard.send("PATCH", url, b"{}", {})
    sources = Sources(guard=guard, store=LocalStore(tmp_path))
    assert sources.refusal_reason(url)
    with pytest.raises(ImageRefused):
        sources.fetch(url, max_bytes=100)


# ---- a witness that must not be reached ----


def redirect(to: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


def body(data: bytes, *headers: str) -> bytes:
    head = "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *headers))
    return head.encode() + b"\r\n" + data


@pytest.mark.parametrize(
    "ip", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "64:ff9b::7f00:1", "10.0.0.1"]
)
def test_a_name_that_leads_inside_is_refused(ip: str) -> None:
    with witness() as seen:
        guard = Guard(timeout_s=5, resolve=lambda host, port: [ip])
        with pytest.raises(AddressRefused, match="not public"):
            guard.get_bytes(f"http://images.example.com/?{SECRET}", 100)
        with pytest.raises(AddressRefused, match="not public"):
            guard.send("PATCH", "https://hooks.example.com/", b"{}", {})
        assert seen.reached == 0


def test_one_bad_address_among_good_ones_is_enough() -> None:
    for answer in (["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["2606:4700:4700::1111", "fd00:ec2::254"]):
        guard = Guard(timeout_s=5, resolve=lambda host, port, found=tuple(answer): list(found))
        with pytest.raises(AddressRefused):
            guard.get_bytes("http://images.example.com/", 100)


def test_a_name_is_asked_once_and_what_was_checked_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    """First public, then private: the second answer is never asked for."""
    answers = iter([["8.8.8.8"], ["127.0.0.1"]])
    asked, dialled = [], []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    def connect(address: tuple[str, int], *_: object, **__: object) -> socket.socket:
        dialled.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    with witness() as seen:
        with pytest.raises(Unreachable):
            Guard(timeout_s=5, resolve=resolve).get_bytes("http://rebinding.example.com/", 100)
        assert (asked, dialled) == (["rebinding.example.com"], [("8.8.8.8", 80)])
        assert seen.reached == 0


def test_every_hop_is_looked_up_and_checked_anew() -> None:
    """A redirect to the same name, which now answers with a private address."""
    with witness(redirect("http://rebinding.example.com/again")) as first:
        answers = {"rebinding.example.com": ["127.0.0.1"]}
        guard = Guard(
            allow_hosts=[f"front.example.com:{first.port}"],
            timeout_s=5,
            resolve=lambda host, port: answers.get(host, ["127.0.0.1"]),
        )
        with pytest.raises(AddressRefused):
            guard.get_bytes(f"http://front.example.com:{first.port}/", 100)
        assert first.reached == 1


@pytest.mark.parametrize(
    "to",
    [
        "http://169.254.169.254/latest/meta-data/iam/",
        "http://[fd00:ec2::254]/latest/meta-data/",
        "http://metadata.google.internal/computeMetadata/v1/",
        "http://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "//127.0.0.1:{port}/",
        "https://127.0.0.1:{port}/",
        "http://2130706433:{port}/",
        "http://user@front.example.com:{front}/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/_x",
        "http://front.example.com:1/",
        "http://[broken/",
    ],
)
def test_a_redirect_inside_is_refused(to: str) -> None:
    with witness() as seen, witness() as front:
        front.answer = redirect(to.format(port=seen.port, front=front.port))
        resolve = {"front.example.com": ["127.0.0.1"], "metadata.google.internal": ["169.254.169.254"]}
        guard = Guard(
            allow_hosts=[f"front.example.com:{front.port}"], timeout_s=5, resolve=lambda host, port: resolve[host]
        )
        with pytest.raises(AddressRefused) as raised:
            guard.get_bytes(f"http://front.example.com:{front.port}/?{SECRET}", 100)
        assert (seen.reached, front.reached) == (0, 1)
        assert "planted" not in str(raised.value)


def test_the_environment_sends_nobody_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment would be asked for everything, and would look names up itself."""
    with witness() as proxy, witness(body(b"ok", "Content-Length: 2")) as target:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        guard = Guard(allow_hosts=[f"127.0.0.1:{target.port}"], timeout_s=5)
        assert guard.get_bytes(f"http://127.0.0.1:{target.port}/", 10) == b"ok"
        assert proxy.reached == 0


# ---- slow and endless answers ----


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["nothing", "status", "header", "body", "chunks", "until closed"],
)
def test_a_trickle_ends_with_the_clock(start: bytes) -> None:
    slow = Trickle(start)
    try:
        guard = Guard(allow_hosts=[f"127.0.0.1:{slow.port}"], timeout_s=0.6)
        started = time.monotonic()
        with pytest.raises(Unreachable) as raised:
            guard.get_bytes(f"http://127.0.0.1:{slow.port}/?{SECRET}", 10_000_000)
        assert time.monotonic() - started < 60
        assert raised.value.retryable
        assert "planted" not in str(raised.value)
    finally:
        slow.close()


def test_silence_ends_with_the_clock() -> None:
    """A listener that accepts nothing: the connection stands in the kernel's queue and says no word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for url in (f"http://127.0.0.1:{port}/", f"https://127.0.0.1:{port}/"):
            started = time.monotonic()
            with pytest.raises(Unreachable):
                Guard(allow_hosts=[f"127.0.0.1:{port}"], timeout_s=0.4).get_bytes(url, 100)
            assert time.monotonic() - started < 60


def test_a_look_up_that_hangs_ends_with_the_clock() -> None:
    done = threading.Event()

    def hang(_host: str, _port: int) -> list[str]:
        done.wait(120)
        return ["8.8.8.8"]

    started = time.monotonic()
    with pytest.raises(Unreachable):
        Guard(timeout_s=0.3, resolve=hang).get_bytes("http://slow.example.com/", 100)
    assert time.monotonic() - started < 60
    done.set()


@pytest.mark.parametrize("head", [b"", b"Content-Length: 999999999999999\r\n"])
def test_an_endless_body_is_cut_off(head: bytes, tmp_path: Path) -> None:
    endless = Endless(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
    try:
        guard = Guard(allow_hosts=[f"127.0.0.1:{endless.port}"], timeout_s=20)
        sources = Sources(guard=guard, store=LocalStore(tmp_path))
        with pytest.raises(ImageRefused, match="more than 100000 bytes"):
            sources.fetch(f"http://127.0.0.1:{endless.port}/", max_bytes=100_000)
        status, _ = guard.send("PATCH", f"http://127.0.0.1:{endless.port}/", b"{}", {})
        assert status == 200
        assert endless.sent < 50_000_000
    finally:
        endless.close()


def test_no_more_than_so_many_downloads_run_at_once() -> None:
    """Twenty callers, two hosts that never finish: each has four connections at a time, and a third host is served."""
    slow = [Trickle(b"HTTP/1.1 200 OK\r\n\r\n"), Trickle(b"HTTP/1.1 200 OK\r\n\r\n")]
    names = {f"slow-{number}.example.com": one.port for number, one in enumerate(slow)}
    with witness(body(b"ok", "Content-Length: 2")) as quick:
        guard = Guard(
            allow_hosts=[*(f"{name}:{port}" for name, port in names.items()), f"quick.example.com:{quick.port}"],
            timeout_s=3,
            resolve=lambda host, port: ["127.0.0.1"],
        )
        errors: list[Unreachable] = []

        def call(url: str) -> None:
            with pytest.raises(Unreachable) as raised:
                guard.get_bytes(url, 10_000_000)
            errors.append(raised.value)

        (first, one), (second, other) = names.items()
        threads = [threading.Thread(target=call, args=(f"http://{first}:{one}/?{SECRET}",)) for _ in range(20)]
        try:
            for thread in threads:
                thread.start()
            until(lambda: slow[0].reached == 4, 60, "four are on their way")
            assert guard.get_bytes(f"http://quick.example.com:{quick.port}/", 10) == b"ok"
            more = [threading.Thread(target=call, args=(f"http://{second}:{other}/",)) for _ in range(5)]
            for thread in more:
                thread.start()
            for thread in [*threads, *more]:
                thread.join(60)
        finally:
            for server in slow:
                server.close()
        assert len(errors) == 25
        assert all(error.retryable and "planted" not in str(error) for error in errors)
        waited = [error for error in errors if "too many downloads were running" in error.message]
        assert waited, "some never had a turn"
        assert guard.get_bytes(f"http://quick.example.com:{quick.port}/", 10) == b"ok", "every turn was given back"


def test_endless_redirects_end_with_the_third(tmp_path: Path) -> None:
    with witness() as front:
        front.answer = redirect(f"http://127.0.0.1:{front.port}/again")
        sources = Sources(
            guard=Guard(allow_hosts=[f"127.0.0.1:{front.port}"], timeout_s=20), store=LocalStore(tmp_path)
        )
        with pytest.raises(ImageRefused, match="would be redirect 4"):
            sources.fetch(f"http://127.0.0.1:{front.port}/", max_bytes=100)
        assert front.reached == 4


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        (body(gzip.compress(bytes(10**6)), "Content-Encoding: gzip"), "sent a compressed body"),
        (body(gzip.compress(bytes(10**6)), "Content-Encoding: gzip, identity"), "sent a compressed body"),
        (body(b"3e8\r\n" + bytes(1000) + b"\r\n", "Transfer-Encoding: chunked"), "has more than 999 bytes"),
        (body(b"fffffffffffffff\r\n" + bytes(1000), "Transfer-Encoding: chunked"), "has more than 999 bytes"),
        (body(bytes(1000), "Content-Length: -1"), "closed the connection or does not speak HTTP"),
        (body(b"", "Content-Length: 1000"), "has more than 999 bytes"),
        (body(b"12", "Content-Length: 500"), "closed the connection or does not speak HTTP"),
        (body(b"12", "Content-Length: 2", "Content-Length: 500"), "closed the connection or does not speak HTTP"),
        (body(b"zz\r\n12\r\n", "Transfer-Encoding: chunked"), "closed the connection or does not speak HTTP"),
        (body(b"2\r\n12\r\n", "Transfer-Encoding: chunked"), "closed the connection or does not speak HTTP"),
    ],
)
def test_bodies_that_lie(answer: bytes, content: str, tmp_path: Path) -> None:
    with witness(answer) as front:
        sources = Sources(
            guard=Guard(allow_hosts=[f"127.0.0.1:{front.port}"], timeout_s=20), store=LocalStore(tmp_path)
        )
        with pytest.raises(ImageUnreachable, match=content):
            sources.fetch(f"http://127.0.0.1:{front.port}/", max_bytes=999)


def test_endless_headers_are_cut_off() -> None:
    with witness(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 100_000) as front, pytest.raises(Unreachable):
        Guard(allow_hosts=[f"127.0.0.1:{front.port}"], timeout_s=10).get_bytes(f"http://127.0.0.1:{front.port}/", 9)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6 FOREIGN\r\n",
        b"-ERR unknown command FOREIGN\r\n",
        b"\x16\x03\x01FOREIGN",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nFOREIGN",
        b"HTTP/1.1 200 OK\r\nContent-Length: FOREIGN\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad FOREIGN Header\r\n\r\n",
        b"HTTP/1.1 500 FOREIGN\r\nContent-Length: 7\r\n\r\nFOREIGN",
        b"HTTP/1.1 404 FOREIGN\r\nContent-Length: 7\r\n\r\nFOREIGN",
        b"HTTP/1.1 999 FOREIGN\r\nContent-Length: 7\r\n\r\nFOREIGN",
        b"",
    ],
)
def test_nothing_foreign_is_repeated(answer: bytes, tmp_path: Path) -> None:
    """Neither in the message nor in the chain of causes, which a log would print."""
    with witness(answer) as front:
        guard = Guard(allow_hosts=[f"127.0.0.1:{front.port}"], timeout_s=5)
        with pytest.raises(ImageUnreachable) as raised:
            Sources(guard=guard, store=LocalStore(tmp_path)).fetch(
                f"http://127.0.0.1:{front.port}/secret-path?{SECRET}", max_bytes=1000
            )
        text = repr(raised.value) + repr(raised.value.details)
        for word in ("FOREIGN", "planted", "secret-path"):
            assert word not in text
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__
