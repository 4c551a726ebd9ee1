"""`make bench-web`: the HTTP API under load during a training on the same cores.

200 event streams are open on four trainings of four owners, one of which trains, and 50 status requests a second are
sent for 20 s. Then the API is killed once and restarted, and the trainings are cancelled. The last line is one JSON
object: `streams, requests_per_s, status_p50_ms, status_p99_ms, event_p50_ms, event_p99_ms, lost_events`. The time of a
request starts when it was due, and that of an event before its commit. An event is lost if a stream, which reconnects
with `Last-Event-ID`, has not received it at the end. The load runs on the same cores.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

from benchmarks.home import ROOT, settle

OWNERS = 4


def main() -> int:
    """Run the benchmark in an isolated home folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50.0, help="status requests a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="imprint-bench-") as folder:
        settle(Path(folder), IMPRINT_IO_CONCURRENCY="1", IMPRINT_WEB_PORT="0")
        result = _run(options.streams, options.rate, options.seconds)
    print(json.dumps(result))
    return 0


def _run(streams: int, rate: float, seconds: float) -> dict[str, Any]:
    import tasks.relay  # noqa: F401 - sends what is submitted here
    from cli.stack import running
    from core.settings import settings
    from jobs import service
    from jobs.services import services
    from storage.tables.jobs import Stage

    with running(settings(), flower=False, web=True) as stack:
        callers = [_caller(f"owner-{number}") for number in range(OWNERS)]
        jobs = [job_id for _, job_id in callers]
        deadline = time.monotonic() + 120
        while not any(view.stage == Stage.TRAIN and view.step for view in service.jobs(services(), active=True)):
            if time.monotonic() > deadline:
                raise SystemExit("no training has begun within two minutes")
            time.sleep(0.2)
        load = Load(stack.layout.web_url, callers, streams)
        load.kill = lambda: _kill(stack["web"])
        load.cancel = lambda: [service.cancel(services(), job_id) for job_id in jobs]
        asyncio.run(load.run(rate, seconds))
        written = {job_id: [event.id for event in service.events(services(), job_id)] for job_id in jobs}
    lost = sum(len(set(written[stream.job_id]) - set(stream.ids)) for stream in load.streams)
    twice = sum(len(stream.ids) - len(set(stream.ids)) for stream in load.streams)
    print(f"{sum(map(len, load.events))} events arrived in the {seconds:.0f} s, {twice} twice in all; {load.failed} of "
          f"{load.asked} requests failed")  # fmt: skip
    status, events = quantiles(load.took, n=100), quantiles([at for one in load.events for at in one], n=100)
    return {
        "streams": streams,
        "requests_per_s": round(len(load.took) / seconds, 1),
        "status_p50_ms": round(status[49] * 1000, 1),
        "status_p99_ms": round(status[98] * 1000, 1),
        "event_p50_ms": round(events[49] * 1000, 1),
        "event_p99_ms": round(events[98] * 1000, 1),
        "lost_events": lost,
    }


def _caller(owner: str) -> tuple[str, str]:
    """Create a token, and a training that takes longer than the benchmark."""
    from jobs import service
    from jobs.owners import accounts, tokens
    from jobs.services import services
    from jobs.stages import intake

    accounts.grant(services(), owner, 1_000_000)
    files = sorted((ROOT / "demo" / "pictures").glob("*.png"))[:5]
    images = [intake.store_picture(services(), owner, "mascot", file.read_bytes()) for file in files]
    request = {
        "owner_id": owner, "subject_id": "mascot", "base_model": "sd15", "trigger_word": "imp", "resolution": 64,
        "max_steps": 100_000, "images": images,
    }  # fmt: skip
    job_id = service.submit(services(), request).job_id
    return tokens.create(services(), "bench", owner_id=owner)[0], job_id


def _kill(member: Any) -> None:
    member.process.kill()


@dataclass
class OpenStream:
    """A client of one event stream, which reconnects as needed."""

    secret: str
    job_id: str
    ids: list[int] = field(default_factory=list)
    over: bool = False


class Load:
    """All clients, on one event loop."""

    def __init__(self, url: str, callers: list[tuple[str, str]], streams: int) -> None:
        self.host, self.port = str(urlsplit(url).hostname), int(urlsplit(url).port or 80)
        self.callers = callers
        self.streams = [OpenStream(*callers[number % len(callers)]) for number in range(streams)]
        self.events: list[list[float]] = [[] for _ in self.streams]
        self.took: list[float] = []
        self.asked = self.failed = 0
        self.measuring = False
        self.kill: Any = None
        self.cancel: Any = None

    async def run(self, rate: float, seconds: float) -> None:
        """Open the streams, send requests at `rate` for `seconds`, then kill the API and end the trainings."""
        await self._until(self._is_up, 60)
        following = [asyncio.create_task(self._follow(number)) for number in range(len(self.streams))]
        await self._until(lambda: _true(all(stream.ids for stream in self.streams)), 120)
        self.measuring = True
        begun, asking = time.perf_counter(), []
        for number in range(int(rate * seconds)):
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asking.append(asyncio.create_task(self._ask(number, due)))
        await asyncio.gather(*asking)
        self.measuring = False
        self.kill()
        await asyncio.sleep(1)
        await self._until(self._is_up, 60)
        await asyncio.get_running_loop().run_in_executor(None, self.cancel)
        await asyncio.wait_for(asyncio.gather(*following), 120)

    async def _until(self, condition: Any, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not await condition():
            if time.monotonic() > deadline:
                raise SystemExit("the API, or its streams, did not come up")
            await asyncio.sleep(0.1)

    async def _is_up(self) -> bool:
        with suppress(OSError):
            return b" 200 " in await self._get("/healthz", "")
        return False

    async def _get(self, path: str, secret: str) -> bytes:
        """One request on a connection of its own; the status line."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(self._request(path, secret, "Connection: close"))
            line = await reader.readline()
            await reader.read()
            return line
        finally:
            writer.close()

    def _request(self, path: str, secret: str, *headers: str) -> bytes:
        lines = [f"GET {path} HTTP/1.1", f"Host: {self.host}", f"Authorization: Bearer {secret}", *headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def _ask(self, number: int, due: float) -> None:
        secret, job_id = self.callers[number % len(self.callers)]
        path = f"/api/trainings/{job_id}" if number % 2 else "/api/influencer/mascot/lora/status"
        self.asked += 1
        line = await self._get(path, secret)
        self.took.append(time.perf_counter() - due)
        self.failed += b" 200 " not in line

    async def _follow(self, number: int) -> None:
        stream = self.streams[number]
        while not stream.over:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._read(stream, self.events[number])
            await asyncio.sleep(0.2)

    async def _read(self, stream: OpenStream, arrived: list[float]) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            last = f"Last-Event-ID: {stream.ids[-1] if stream.ids else 0}"
            writer.write(
                self._request(f"/api/trainings/{stream.job_id}/events", stream.secret, last, "Connection: close")
            )
            if b" 204 " in await reader.readline():
                stream.over = True
            while not stream.over and (line := await reader.readline()):
                if line.startswith(b"id: "):
                    stream.ids.append(int(line[4:]))
                elif line.startswith(b"data: ") and self.measuring:
                    at = datetime.fromisoformat(json.loads(line[6:])["at"])
                    arrived.append((datetime.now(UTC) - at).total_seconds())
        finally:
            writer.close()


async def _true(value: bool) -> bool:
    return value


if __name__ == "__main__":
    sys.exit(main())
