"""Event streams: everybody who watches is served by one poller of this process, with one query a round.

An event's id is its number in the database, so a client that comes back with `Last-Event-ID`, to this process or
to another, goes on behind it. Events of one job become visible in the order of their numbers (`jobs.transitions.tell`);
those of different jobs need not, so each stream keeps a place of its own and the poller asks job by job.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from jobs import history
from jobs.services import Services
from storage.database import AWAY
from storage.tables import ACTIVE, JobEvent
from web.models.common import camel_keys

log = logging.getLogger(__name__)

POLL_S = 0.25
_SOON_S = 0.02  # streams that open together are served by one query
_AWAY_S = 2.0
_HEARTBEAT_S = 15.0  # proxies close what is silent for a minute
_RETRY_MS = 1000  # how soon a browser comes back
_MOST_WAITING = 5000  # events that a client does not fetch; then its stream ends, and it may come back


@dataclass(eq=False)
class Stream:
    """One open stream: which job, up to which event it has been served, and what waits to be written."""

    job_id: str
    after: int
    waiting: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(_MOST_WAITING + 1))
    over: bool = False

    def offer(self, event_id: int, message: bytes, is_last: bool) -> None:
        if self.over or event_id <= self.after:
            return
        self.after = event_id
        self.waiting.put_nowait(message)
        if is_last or self.waiting.qsize() >= _MOST_WAITING:
            self.end()

    def end(self) -> None:
        if not self.over:
            self.over = True
            self.waiting.put_nowait(None)


class Streams:
    """The open streams of this process and their poller. All but the query runs on the event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._open: dict[str, set[Stream]] = {}
        self._news = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="streams")  # not the handlers' pool: it may be full
        self._poller: asyncio.Task[None] | None = None
        self._going = False

    @property
    def count(self) -> int:
        return sum(len(streams) for streams in self._open.values())

    def start(self) -> None:
        self._news = asyncio.Event()
        self._poller = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        self.let_go()
        if self._poller is not None:
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller
        self._thread.shutdown(wait=False)

    def let_go(self) -> None:
        """End all streams and open no more: this process leaves, and the clients come back to the next."""
        self._going = True
        for streams in self._open.values():
            for stream in streams:
                stream.end()

    async def follow(self, job_id: str, after: int) -> AsyncIterator[bytes]:
        """A job's events behind number `after`, as they come, up to the one that ends it; heartbeats in between."""
        stream = Stream(job_id, after)
        self._open.setdefault(job_id, set()).add(stream)
        self._news.set()
        if self._going:
            stream.end()
        try:
            yield f"retry: {_RETRY_MS}\n\n".encode()
            while True:
                message: bytes | None = KEEPALIVE_COMMENT
                with suppress(TimeoutError):
                    async with asyncio.timeout(_HEARTBEAT_S):
                        message = await stream.waiting.get()
                if message is None:
                    return
                yield message
        finally:
            self._open[job_id].discard(stream)
            if not self._open[job_id]:
                del self._open[job_id]

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._open:
                self._news.clear()
                await self._news.wait()
                await asyncio.sleep(_SOON_S)
            places = {
                job_id: min(stream.after for stream in streams)
                for job_id, streams in self._open.items()
                if any(not stream.over for stream in streams)
            }
            try:
                events = await loop.run_in_executor(self._thread, self._ask, places) if places else []
            except AWAY as error:
                log.warning("event streams wait: the database does not answer (%s)", type(error).__name__)
                await asyncio.sleep(_AWAY_S)
                continue
            for event in events:
                self._hand_out(event)
            if len(events) < history.MOST_EVENTS:
                await asyncio.sleep(POLL_S)

    def _ask(self, places: dict[str, int]) -> Sequence[JobEvent]:
        return history.events_of(self._services, places)

    def _hand_out(self, event: JobEvent) -> None:
        streams = self._open.get(event.job_id)
        if streams and event.id is not None:
            message, last = encode(event), is_last(event)
            for stream in streams:
                stream.offer(event.id, message, last)


def encode(event: JobEvent) -> bytes:
    """An event as it goes over the wire."""
    data = {"at": event.at.isoformat(), **camel_keys(json.loads(event.data))}
    return format_sse_event(data_str=json.dumps(data), event=event.kind, id=str(event.id))


def is_last(event: JobEvent) -> bool:
    """Whether nothing follows: the job is final."""
    return event.kind == "status" and json.loads(event.data)["status"] not in ACTIVE


async def event_response(request: Request, services: Services, job_id: str, owner_id: str, last_id: int) -> Response:
    """A job's events behind number `last_id` as server-sent events; 204 where none is left and none will come.

    Raises NotFound as `service.get_job` does.
    """
    streams: Streams = request.app.state.streams
    active, newest = await run_in_threadpool(history.position, services, job_id, owner_id)
    after = min(last_id, newest)  # with a number that we never gave, a client would wait for ever
    if not active and after == newest:
        return Response(status_code=204)
    stream = streams.follow(job_id, after) if active else _past_events(services, job_id, after)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _past_events(services: Services, job_id: str, after: int) -> AsyncIterator[bytes]:
    while found := await run_in_threadpool(history.events_of, services, {job_id: after}):
        for event in found:
            after = event.id or after
            yield encode(event)
