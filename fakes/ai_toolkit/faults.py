"""Faults of the fake server, scripted by a test or drawn from a seed, and the journal of requests.

To script: POST /_fake/faults {"kind", "method"?, "path"?, "times"?}; POST /_fake/fates {"name", "fate"}.
Requests with the header x-fake-look meet no faults and are not in the journal.
"""

import asyncio
import json
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# error: 500. gateway: a 502 page from a proxy. hang: no response for a long time. reset: the connection breaks before
# the request is handled. lost: it breaks after that, before the response. truncate: it breaks within the response.
KINDS = ("error", "gateway", "hang", "reset", "lost", "truncate")
# The probability of each for a request; truncate applies only to downloads.
_ODDS = {"error": 0.02, "gateway": 0.01, "hang": 0.002, "reset": 0.01, "lost": 0.01}
_TRUNCATED = 0.2
# die: worker and trainer disappear, and the job stays at running. error: the trainer fails. stall: the trainer stops
# making progress. slow: loading takes ten times as long.
FATES = ("die", "error", "stall", "slow")
_FATE_ODDS = {"die": 0.04, "error": 0.04, "stall": 0.02, "slow": 0.10}
PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"


@dataclass
class ScriptedFault:
    """A fault for the next `times` matching requests."""

    kind: str
    method: str = ""
    path: str = ""  # a part of it
    times: int = 1


class FaultInjector:
    """Decides which requests and jobs fail, and how."""

    def __init__(self, seed: int | None, hang_s: float) -> None:
        self.seed, self.hang_s = seed, hang_s
        self._random = random.Random(seed)  # noqa: S311
        self._scripts: list[ScriptedFault] = []
        self._fates: dict[str, str] = {}
        self._lock = threading.Lock()

    def script(self, script: ScriptedFault) -> None:
        with self._lock:
            self._scripts.append(script)

    def decide(self, method: str, path: str) -> str | None:
        """The fault for a request, or None."""
        with self._lock:
            for script in self._scripts:
                if script.times > 0 and script.method in ("", method) and script.path in path:
                    script.times -= 1
                    return script.kind
            if self.seed is None:
                return None
            drawn = self._random.random()
            if method == "GET" and path.startswith("/api/files/") and drawn < _TRUNCATED:
                return "truncate"
            return _pick(_ODDS, drawn)

    def set_fate(self, name: str, fate: str) -> None:
        self._fates[name] = fate

    def fate(self, name: str) -> str | None:
        """The fate of the job `name`, or None; the same for the same seed."""
        if name in self._fates:
            return self._fates[name]
        if self.seed is None:
            return None
        return _pick(_FATE_ODDS, random.Random(f"{self.seed} {name}").random())  # noqa: S311


def _pick(odds: dict[str, float], drawn: float) -> str | None:
    for kind, share in odds.items():
        drawn -= share
        if drawn < 0:
            return kind
    return None


class Journal:
    """A file with one JSON line per request: time, process, request, subject, status and fault."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("a", buffering=1) if path is not None else None

    def write(self, **line: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"at": round(time.time(), 3), "pid": os.getpid(), **line}) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class FaultMiddleware:
    """The outermost middleware: injects faults and writes the journal."""

    def __init__(self, app: ASGIApp, faults: FaultInjector, journal: Journal, ready_after_s: float) -> None:
        self.app, self.faults, self.journal = app, faults, journal
        self.opens_at = time.monotonic() + ready_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        ours = path.startswith("/_fake/") or any(name == b"x-fake-look" for name, _ in scope["headers"])
        fault = None if ours else self.faults.decide(scope["method"], path)
        if time.monotonic() < self.opens_at:
            fault = "gateway"
        seen: dict[str, Any] = {"status": None}

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
            await send(message)

        try:
            await self._pass(fault, scope, receive, watched, _abort_of(send))
        finally:
            about = scope.get("fake.about")
            if not ours:
                self.journal.write(method=scope["method"], path=path, about=about, fault=fault, **seen)

    async def _pass(
        self, fault: str | None, scope: Scope, receive: Receive, send: Send, abort: Callable[[], Awaitable[None]]
    ) -> None:
        if fault is None:
            await self.app(scope, receive, send)
        elif fault == "error":
            await _answer(send, 500, b"Internal Server Error", b"text/plain")
        elif fault == "gateway":
            await _answer(send, 502, PAGE, b"text/html")
        elif fault == "truncate":
            await self.app(scope, receive, _Half(send))
            await abort()
        else:
            if fault == "hang":
                await asyncio.sleep(self.faults.hang_s)
            elif fault == "lost":
                await self.app(scope, receive, _swallow)
            await abort()


class _Half:
    """Sends only the first half of a response body."""

    def __init__(self, send: Send) -> None:
        self._send, self._left = send, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = dict(message.get("headers", []))
            self._left = max(1, int(headers.get(b"content-length", b"2")) // 2)
            await self._send(message)
        elif message["type"] == "http.response.body" and self._left > 0:
            body = bytes(message.get("body", b""))[: self._left]
            self._left -= len(body)
            if body:
                await self._send({"type": "http.response.body", "body": body, "more_body": True})


async def _swallow(message: Message) -> None:
    return


def _abort_of(send: Send) -> Callable[[], Awaitable[None]]:
    """A function that breaks the connection. uvicorn's `send` is a bound method of the object with the transport."""
    transport: Any = getattr(getattr(send, "__self__", None), "transport", None)

    async def abort() -> None:
        if transport is not None:
            transport.close() if transport.get_write_buffer_size() else transport.abort()
        await asyncio.sleep(0)  # let uvicorn notice

    return abort


async def _answer(send: Send, status: int, body: bytes, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def record_subject(scope: MutableMapping[str, Any], about: object) -> None:
    """Record the subject of a request for the journal: the name of a job or dataset."""
    scope["fake.about"] = str(about)
