"""Event streams: one poller per process serves all streams, with one query per round.

An event's id is its number in the database. A client that reconnects with `Last-Event-ID`, to this process or
another, continues after that event. Events of one job become visible in the order of their numbers
(`jobs.lifecycle.transitions`); events of different jobs need not, so each stream keeps its own position and the
poller queries job by job.
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
from starlette.types import Receive, Scope, Send

from core import essential
from jobs import history
from jobs.owners import sessions
from jobs.owners.sessions import Credential
from jobs.services import Services
from storage.database import AWAY
from storage.tables.jobs import ACTIVE, JobEvent
from web.auth import Caller
from web.models.common import camel_keys
from web.server.limits import OpenLimit
from web.server.open_files import open_files_limit

log = logging.getLogger(__name__)

POLL_S = 0.25
_SOON_S = 0.02  # streams that open together are served by one query
_AWAY_S = 2.0
_HEARTBEAT_S = 15.0  # proxies close connections that are silent for a minute
_RETRY_MS = 1000  # how soon a browser reconnects
_RECHECK_S = 2.0  # how long a stream continues after its token was revoked or its session ended
_MAX_WAITING = 5000  # events that a client has not fetched; then its stream ends, and the client may reconnect


@dataclass(eq=False)
class Stream:
    """An open stream: the job, the number of the last event served, what the client was let in by, and the messages
    that wait to be written.
    """

    job_id: str
    after: int
    credential: Credential
    waiting: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(_MAX_WAITING + 1))
    over: bool = False

    def offer(self, event_id: int, message: bytes, is_last: bool) -> None:
        if self.over or event_id <= self.after:
            return
        self.after = event_id
        self.waiting.put_nowait(message)
        if is_last or self.waiting.qsize() >= _MAX_WAITING:
            self.end()

    def end(self) -> None:
        if not self.over:
            self.over = True
            self.waiting.put_nowait(None)


class Streams:
    """The open streams of this process and their poller. Everything except the query runs on the event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._open: dict[str, set[Stream]] = {}
        self._opened = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="streams")  # the pool of the handlers may be full
        self._poller: asyncio.Task[None] | None = None
        self._closing = False
        in_all = min(services.settings.streams_max, open_files_limit() // 2)
        self.limit = OpenLimit("event streams", services.settings.streams_per_caller, in_all)

    @property
    def count(self) -> int:
        return sum(len(streams) for streams in self._open.values())

    def start(self) -> None:
        self._opened = asyncio.Event()
        self._poller = asyncio.create_task(self._poll())
        self._poller.add_done_callback(_end_with)

    async def stop(self) -> None:
        self.close_all()
        if self._poller is not None:
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller
        self._thread.shutdown(wait=False)

    def close_all(self) -> None:
        """End all streams and open no new ones: this process stops, and the clients reconnect to another."""
        self._closing = True
        for streams in self._open.values():
            for stream in streams:
                stream.end()

    async def follow(self, job_id: str, after: int, credential: Credential) -> AsyncIterator[bytes]:
        """A job's events after number `after` as they happen, up to its last one, with heartbeats in between.

        The stream ends early when its credential is not valid any more.
        """
        stream = Stream(job_id, after, credential)
        self._open.setdefault(job_id, set()).add(stream)
        self._opened.set()
        if self._closing:
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
        recheck_at = 0.0
        while True:
            if not self._open:
                self._opened.clear()
                await self._opened.wait()
                await asyncio.sleep(_SOON_S)
            places = {
                job_id: min(stream.after for stream in streams)
                for job_id, streams in self._open.items()
                if any(not stream.over for stream in streams)
            }
            try:
                events = await loop.run_in_executor(self._thread, self._query, places) if places else []
                for event in events:
                    self._deliver(event)
                if loop.time() >= recheck_at:
                    await self._end_revoked(loop)
                    recheck_at = loop.time() + _RECHECK_S
            except AWAY as error:
                log.warning("event streams wait: the database does not answer (%s)", error)
                await asyncio.sleep(_AWAY_S)
                continue
            except Exception:  # this task serves all streams, so it must not end
                log.exception("event streams wait after an error")
                await asyncio.sleep(_AWAY_S)
                continue
            if len(events) < history.MAX_EVENTS:
                await asyncio.sleep(POLL_S)

    async def _end_revoked(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the streams whose token or session has ended since they were opened."""
        streams = [stream for streams in self._open.values() for stream in streams]
        ended = await loop.run_in_executor(
            self._thread, sessions.ended, self._services, {stream.credential for stream in streams}
        )
        for stream in streams:
            if stream.credential in ended:
                stream.end()

    def _query(self, places: dict[str, int]) -> Sequence[JobEvent]:
        return history.events_of(self._services, places)

    def _deliver(self, event: JobEvent) -> None:
        streams = self._open.get(event.job_id)
        if streams and event.id is not None:
            message, last = encode(event), is_last(event)
            for stream in streams:
                stream.offer(event.id, message, last)


def _end_with(poller: "asyncio.Task[None]") -> None:
    """End the process with its poller: without it, all streams would be silent for ever."""
    if not poller.cancelled():
        essential.start("streams", poller.result)


def encode(event: JobEvent) -> bytes:
    """An event as a server-sent event."""
    data = {"at": event.at.isoformat(), **camel_keys(event.data)}
    return format_sse_event(data_str=json.dumps(data), event=event.kind, id=str(event.id))


def is_last(event: JobEvent) -> bool:
    """Whether this is the last event of a job: it has ended."""
    return event.kind == "status" and event.data["status"] not in ACTIVE


class _LimitedResponse(StreamingResponse):
    """A stream that counts for its caller until it ends, however it ends."""

    def __init__(self, content: AsyncIterator[bytes], limit: OpenLimit, caller: str) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        limit.acquire(caller)
        self._limit, self._caller = limit, caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._limit.release(self._caller)


async def event_response(request: Request, services: Services, job_id: str, caller: Caller, last_id: int) -> Response:
    """A job's events after number `last_id` as server-sent events; 204 where none is left and none will come.

    Raises NotFound as `service.get_job` does, and RequestRefused if too many streams are open.
    """
    streams: Streams = request.app.state.streams
    active, newest = await run_in_threadpool(history.position, services, job_id, caller.owner_id)
    after = min(last_id, newest)  # with a number that we never gave, a client would wait for ever
    if not active and after == newest:
        return Response(status_code=204)
    stream = streams.follow(job_id, after, caller.credential) if active else _past_events(services, job_id, after)
    return _LimitedResponse(stream, streams.limit, caller.key)


async def _past_events(services: Services, job_id: str, after: int) -> AsyncIterator[bytes]:
    while found := await run_in_threadpool(history.events_of, services, {job_id: after}):
        for event in found:
            after = event.id or after
            yield encode(event)
