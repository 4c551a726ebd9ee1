"""The guarded client, against real servers on loopback that the operator's list allows."""

import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from core.errors import AddressRefused, AnswerRefused, Unreachable
from core.outbound.addresses import parse_host_ports
from core.outbound.guard import Guard

Answer = tuple[int, dict[str, str], bytes]


class Site:
    """A server whose pages are functions of the request."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], Answer]] = {}
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.requests.append((self.command, self.path, dict(self.headers), content))
                status, headers, body = outer.pages[self.path.split("?")[0]](self)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PATCH = do_POST = answer  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def page(self, path: str, status: int = 200, body: bytes = b"", **headers: str) -> str:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        self.pages[path] = lambda _: (status, given, body)
        return f"http://images.example.com:{self.port}{path}"

    def guard(self, **options: object) -> Guard:
        allowed = [f"images.example.com:{self.port}", f"other.example.com:{self.port}"]
        return Guard(
            allow_hosts=allowed,
            resolve=lambda host, port: ["127.0.0.1"],
            **{"timeout_s": 10.0, **options},  # type: ignore[arg-type]
        )

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def test_a_body_is_fetched_under_the_name_it_was_asked_by(site: Site) -> None:
    url = site.page("/a.png", body=b"pixels")
    assert site.guard().get_bytes(url + "?X=1&y=%20z", 6) == b"pixels"
    method, path, headers, _ = site.requests[0]
    assert (method, path) == ("GET", "/a.png?X=1&y=%20z")
    assert headers["Host"] == f"images.example.com:{site.port}"
    assert headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in headers
    assert "Authorization" not in headers


def test_three_redirects_are_followed_and_no_more(site: Site) -> None:
    site.page("/4", body=b"there")
    for number in (3, 2, 1, 0):
        site.page(f"/{number}", 302, Location=f"/{number + 1}")
    start = f"http://images.example.com:{site.port}"
    assert site.guard().get_bytes(f"{start}/1", 10) == b"there"
    with pytest.raises(AnswerRefused, match="would be redirect 4"):
        site.guard().get_bytes(f"{start}/0", 10)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_may_lead_to_another_allowed_host(site: Site, status: int) -> None:
    site.page("/there", body=b"there")
    url = site.page("/here", status, Location=f"http://other.example.com:{site.port}/there")
    assert site.guard().get_bytes(url, 10) == b"there"
    assert site.requests[1][2]["Host"] == f"other.example.com:{site.port}"


def test_a_redirect_without_a_place_is_refused(site: Site) -> None:
    with pytest.raises(AnswerRefused, match="without a Location header"):
        site.guard().get_bytes(site.page("/x", 302), 10)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_may_be_retried(site: Site, status: int) -> None:
    with pytest.raises(Unreachable) as raised:
        site.guard().get_bytes(site.page("/x", status, b"foreign"), 10)
    assert raised.value.retryable
    assert raised.value.details == {"status": status}


@pytest.mark.parametrize("status", [201, 204, 206, 300, 304, 305, 400, 401, 403, 404, 410, 418, 451])
def test_what_will_not_get_better_is_final(site: Site, status: int) -> None:
    with pytest.raises(AnswerRefused) as raised:
        site.guard().get_bytes(site.page("/x", status), 10)
    assert not raised.value.retryable


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "zstd", "identity, gzip", "x"])
def test_compressed_bodies_are_refused(site: Site, coding: str) -> None:
    with pytest.raises(AnswerRefused, match="compressed"):
        site.guard().get_bytes(site.page("/x", body=b"1", Content_Encoding=coding), 10)


def test_identity_is_no_compression(site: Site) -> None:
    assert site.guard().get_bytes(site.page("/x", body=b"1", Content_Encoding="identity"), 10) == b"1"


def test_the_cap_is_exact(site: Site) -> None:
    url = site.page("/x", body=b"x" * 1000)
    assert len(site.guard().get_bytes(url, 1000)) == 1000
    with pytest.raises(AnswerRefused, match="more than 999 bytes"):
        site.guard().get_bytes(url, 999)


def test_ports_of_others_need_the_list(site: Site) -> None:
    with pytest.raises(AddressRefused, match="the port must be 80 or 443"):
        site.guard().get_bytes(f"http://unlisted.example.com:{site.port}/", 10)


def test_nobody_listening_may_be_retried() -> None:
    guard = Guard(allow_hosts=["127.0.0.1:9"], timeout_s=5)
    with pytest.raises(Unreachable) as raised:
        guard.get_bytes("http://127.0.0.1:9/", 10)
    assert raised.value.retryable


def test_the_next_address_is_tried(site: Site) -> None:
    """A name with two addresses, of which the first does not answer."""
    url = site.page("/x", body=b"1")
    guard = Guard(
        allow_hosts=[f"images.example.com:{site.port}"], resolve=lambda host, port: ["127.0.0.9", "127.0.0.1"]
    )
    assert guard.get_bytes(url, 10) == b"1"


def test_a_name_that_is_not_known_may_be_retried() -> None:
    with pytest.raises(Unreachable):
        Guard(timeout_s=20).get_bytes("http://nobody.invalid/", 10)


# ---- webhooks ----


def test_send_gives_status_and_headers(site: Site) -> None:
    url = site.page("/hook", 503, b"sorry" * 10_000, Retry_After="7")
    status, headers = site.guard().send("PATCH", url, b'{"a": 1}', {"webhook-id": "m1", "Content-Type": "text/x"})
    assert (status, headers["retry-after"]) == (503, "7")
    method, _, sent, content = site.requests[0]
    assert (method, content, sent["webhook-id"], sent["Content-Type"]) == ("PATCH", b'{"a": 1}', "m1", "text/x")
    assert sent["Content-Length"] == "8"


def test_send_with_no_content_says_so(site: Site) -> None:
    assert site.guard().send("POST", site.page("/hook", 204), b"", {})[0] == 204
    assert site.requests[0][2]["Content-Length"] == "0"


def test_send_follows_no_redirect(site: Site) -> None:
    site.page("/there", body=b"there")
    status, headers = site.guard().send("PATCH", site.page("/here", 307, Location="/there"), b"{}", {})
    assert (status, headers["location"]) == (307, "/there")
    assert len(site.requests) == 1


def test_headers_cannot_be_smuggled_in(site: Site) -> None:
    with pytest.raises(AnswerRefused, match="not valid HTTP"):
        site.guard().send("PATCH", site.page("/hook"), b"", {"X": "a\r\nHost: evil"})
    assert site.requests == []


def test_one_guard_serves_many_threads(site: Site) -> None:
    guard, url, found = site.guard(), site.page("/x", body=b"1"), []
    threads = [threading.Thread(target=lambda: found.append(guard.get_bytes(url, 10))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [b"1"] * 20


# ---- TLS ----


@pytest.fixture
def secure_site(tmp_path: Path) -> Iterator[tuple[Site, ssl.SSLContext, list[str | None]]]:
    """A site with a certificate for images.example.com, a context that trusts it, the names it was called by."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=images.example.com"),
            *("-addext", "subjectAltName=DNS:images.example.com"),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    made = Site(context)
    yield made, ssl.create_default_context(cafile=str(certificate)), names
    made.close()


def test_the_certificate_is_checked_for_the_name(
    secure_site: tuple[Site, ssl.SSLContext, list[str | None]],
) -> None:
    """Dialled by address, asked for and checked by name."""
    site, trusting, names = secure_site
    url = site.page("/x", body=b"1").replace("http:", "https:")
    assert site.guard(tls=trusting).get_bytes(url, 10) == b"1"
    assert names == ["images.example.com"]
    with pytest.raises(AnswerRefused, match="no valid certificate"):
        site.guard(tls=trusting).get_bytes(url.replace("images.", "other."), 10)
    with pytest.raises(AnswerRefused, match="no valid certificate"):
        site.guard().get_bytes(url, 10)


# ---- the operator's list ----


def test_pairs_are_read() -> None:
    assert parse_host_ports([" Example.COM:80 ", "[::1]:9000", "10.0.0.1:8080"]) == {
        ("example.com", 80),
        ("::1", 9000),
        ("10.0.0.1", 8080),
    }
    for wrong in ("example.com", ":80", "example.com:", "example.com:http"):
        with pytest.raises(ValueError, match="not host:port"):
            parse_host_ports([wrong])


def test_a_slow_body_is_given_up_long_before_its_time_limit(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def trickle(request: BaseHTTPRequestHandler) -> Answer:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        for _ in range(200):
            request.wfile.write(b"x")
            request.wfile.flush()
            time.sleep(0.02)
        return 200, {}, b""

    site.pages["/slow"] = trickle
    begun = time.monotonic()
    # Only here: on a busy machine, the first byte of the fast one below may take longer than that.
    with monkeypatch.context() as patched:
        patched.setattr("core.outbound.network._GRACE_S", 0.2)
        with pytest.raises(Unreachable, match="less than 1000 bytes a second"):
            site.guard(timeout_s=60, min_bytes_per_s=1000).get_bytes(site.page("/x").replace("/x", "/slow"), 2000)
    assert time.monotonic() - begun < 50
    assert len(site.guard(min_bytes_per_s=1000).get_bytes(site.page("/y", body=b"1" * 10**6), 10**6)) == 10**6
