"""A server that trickles ends no call: no read of the socket ever waits long. The call's own clock ends it."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import StoreUnavailable
from storage.objects.s3 import S3Store
from tests.servers.s3 import S3Server
from tests.servers.trickle import Slowness, trickle_server

LARGE = 30_000_000  # more than the buffers of both sockets take at once
CALLS: dict[str, Callable[[S3Store, Path], object]] = {
    "get": lambda store, _: store.get("a"),
    "get_file": lambda store, folder: store.get_file("a", folder / "out"),
    "head": lambda store, _: store.head("a"),
    "list": lambda store, _: list(store.list("a/")),
    "delete": lambda store, _: store.delete("a"),
    "foreign": lambda store, _: store.read_foreign("other", "a", 100_000),
    "put": lambda store, _: store.put("a", b"x" * 1000),
    "put_file": lambda store, folder: store.put_file("a", folder / "large"),
}


def slow(url: str) -> S3Store:
    return S3Store(
        bucket="b", endpoint_url=url, access_key_id="k", secret_access_key="s",
        answer_s=0.7, min_bytes_per_s=100_000_000,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("slowness", "call"),
    [("head", call) for call in CALLS if call != "put_file"]
    + [("body", call) for call in ("get", "get_file", "list", "foreign")]
    + [("close-delimited body", call) for call in ("list",)]
    + [("reading", "put_file")],
)
def test_a_call_ends_in_its_time(tmp_path: Path, slowness: Slowness, call: str) -> None:
    (tmp_path / "large").write_bytes(b"\0" * LARGE)
    with trickle_server(slowness) as server:
        store = slow(server.url)
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match="too slow") as raised:
            CALLS[call](store, tmp_path)
        assert time.monotonic() - begun < 60
    assert raised.value.retryable
    assert not (tmp_path / "out").exists()


def test_a_call_that_ended_in_time_leaves_its_connection_alone(open_server: Callable[[str], S3Server]) -> None:
    """The next call on the same connection has a clock of its own."""
    server = open_server("moto")
    store = server.store(server.bucket(), answer_s=5)
    for number in range(3):
        store.put(f"a/{number}", b"x" * 1000)
        time.sleep(2)  # the clock of the last call is over soon
        assert store.get(f"a/{number}") == b"x" * 1000


def test_the_time_grows_with_the_object(open_server: Callable[[str], S3Server]) -> None:
    server = open_server("moto")
    store = server.store(server.bucket(), min_bytes_per_s=10_000_000)
    data = b"x" * 20_000_000
    with store._calling("a", len(data)) as deadline:
        assert deadline.seconds == 122.0
    store.put("a", data)
    assert store.get("a") == data
