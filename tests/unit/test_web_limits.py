"""What callers may have open at once, and how slowly a body may come."""

import asyncio
import resource
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message

import web.server.bodies
from web.problems import RequestRefused
from web.server.bodies import BodyLimits
from web.server.idle_connections import IdleConnections
from web.server.limits import OpenLimit
from web.server.open_files import WANTED_FILES, open_files_limit, raise_open_files_limit


def test_the_web_process_may_open_as_many_files_as_the_system_allows() -> None:
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(before, 1024), hard))
        raise_open_files_limit()
        assert open_files_limit() == (WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


def test_each_caller_and_all_callers_have_a_limit() -> None:
    limit = OpenLimit("streams", per_caller=2, in_all=3)
    with limit.hold("ada"), limit.hold("ada"):
        with pytest.raises(RequestRefused, match="this caller has too many streams") as refused:
            limit.acquire("ada")
        assert refused.value.code == "rate_limited"
        limit.acquire("bob")
        with pytest.raises(RequestRefused, match="the service has too many streams") as refused:
            limit.acquire("cleo")
        assert (refused.value.code, "Retry-After" in refused.value.headers) == ("unavailable", True)
    limit.release("bob")
    assert not limit._open  # names of callers do not pile up


@dataclass(eq=False)
class Connection:
    """What is looked at of a connection of uvicorn."""

    cycle: SimpleNamespace | None
    closed: bool = False

    @property
    def transport(self) -> "Connection":
        return self

    def close(self) -> None:
        self.closed = True


def test_a_connection_without_a_request_is_closed() -> None:
    now = [0.0]
    idle = IdleConnections(longest_s=20, clock=lambda: now[0])
    silent, stream = Connection(None), Connection(SimpleNamespace(response_complete=False))
    kept = Connection(SimpleNamespace(response_complete=True))
    for at in (0.0, 10.0, 20.0):
        now[0] = at
        idle.close_old([silent, stream, kept])
    assert [one.closed for one in (silent, stream, kept)] == [False, False, False]
    kept.cycle = SimpleNamespace(response_complete=False)  # a request came
    now[0] = 21.0
    idle.close_old([silent, stream, kept])
    assert (silent.closed, stream.closed, kept.closed) == (True, False, False)


def receive(
    limits: BodyLimits, chunks: list[bytes], pause_s: float, limit: int = 1000,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> bytes:  # fmt: skip
    """The body, sent in chunks with pauses before them, as an app receives it."""
    left = list(chunks)

    async def send() -> Message:
        await sleep(pause_s)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def body() -> bytes:
        limited, found = limits.apply(send, limit), b""
        while True:
            message = await limited()
            found += message["body"]
            if not message["more_body"]:
                return found

    return asyncio.run(body())


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web.server.bodies, "_GRACE_S", 0.1)


def test_a_body_that_keeps_its_rate_has_more_time_than_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: a busy machine would make the fast body a slow one."""
    now = [0.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        await asyncio.sleep(0)

    monkeypatch.setattr(web.server.bodies, "time", SimpleNamespace(monotonic=lambda: now[0]))
    limits = BodyLimits(0, 0, timeout_s=60, min_bytes_per_s=100)
    assert receive(limits, [b"x" * 100] * 20, 1.0, 2000, sleep) == b"x" * 2000  # twice the grace
    with pytest.raises(HTTPException) as slow:
        receive(limits, [b"x" * 40] * 20, 1.0, 2000, sleep)
    assert slow.value.status_code == 408


@pytest.mark.usefixtures("no_grace")
def test_a_body_that_is_too_slow_too_late_or_too_large_is_refused() -> None:
    with pytest.raises(HTTPException) as slow:
        receive(BodyLimits(0, 0, timeout_s=60, min_bytes_per_s=100), [b"x"] * 100, 0.02)
    assert slow.value.status_code == 408
    with pytest.raises(HTTPException) as late:
        receive(BodyLimits(0, 0, timeout_s=0.1, min_bytes_per_s=0), [b"x" * 100] * 100, 0.02)
    assert late.value.status_code == 408
    with pytest.raises(HTTPException) as large:
        receive(BodyLimits(0, 0, timeout_s=60, min_bytes_per_s=0), [b"x" * 600] * 2, 0.0)
    assert large.value.status_code == 413


@pytest.mark.usefixtures("no_grace")
def test_after_the_body_the_wait_for_the_clients_end_has_no_limit() -> None:
    async def wait() -> Message:
        messages: list[Message] = [{"type": "http.request", "body": b"x"}, {"type": "http.disconnect"}]

        async def send() -> Message:
            if len(messages) == 1:
                await asyncio.sleep(0.3)
            return messages.pop(0)

        limited = BodyLimits(0, 0, timeout_s=0.1, min_bytes_per_s=1).apply(send, 10)
        await limited()
        return await limited()

    assert asyncio.run(wait())["type"] == "http.disconnect"
