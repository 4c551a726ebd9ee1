"""Middleware of every request: request id, limits on the body, default headers, metrics and log."""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.actor import acting
from core.ids import new_id
from core.telemetry import tracing
from core.telemetry.logging import request_context
from web.pages import texts
from web.pages.errors import refused_early
from web.parameters import SLASH
from web.partial_files import PIECE_BYTES
from web.problems import INTERNAL_DETAIL
from web.server.bodies import BodyLimits

log = logging.getLogger(__name__)

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_UPLOADS = ("/images", "/mask", "/captions/all/import")  # the ends of addresses that take files
# Unless a route sets its own: no caching, sniffing, framing or scripts.
_DEFAULTS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Headers that decide about identity or money. Of two values, a proxy might check one and this service use the other.
_ONCE = (b"authorization", b"imprint-owner", b"idempotency-key", b"origin", b"sec-fetch-site", b"host")
Observe = Callable[[str, str, int, float], None]


class RequestMiddleware:
    """ASGI middleware. `observe` gets method, route, status and seconds."""

    def __init__(self, app: ASGIApp, *, bodies: BodyLimits, observe: Observe) -> None:
        self._app, self._bodies, self._observe = app, bodies, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_text = _keep_slashes(scope)
        given = headers.get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else new_id("req")
        scope["imprint.request_id"] = request_id
        begun, status = time.perf_counter(), 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response_headers = MutableHeaders(scope=message)
                response_headers["X-Request-Id"] = request_id
                for name, value in _DEFAULTS.items():
                    response_headers.setdefault(name, value)
            await send(message)

        texts.use(headers.get("accept-language", ""), headers.get("cookie", ""))
        with (
            acting(),
            request_context(request_id, scope["path"]),
            tracing.continue_trace(headers),
            tracing.span("HTTP", "server", request_id=request_id) as seen,
        ):
            try:
                limit = self._limit(scope, headers)
                if fault := "the address is not UTF-8" if not is_text else _header_fault(scope):
                    # What follows on the connection may be part of a request that two servers read differently.
                    refusal = refused_early(Request(scope), "bad_request", fault, {"Connection": "close"})
                    await refusal(scope, receive, send_with_headers)
                elif (size := headers.get("content-length", "0")).isdigit() and int(size[:20]) > limit:
                    refusal = refused_early(Request(scope), "too_large", _too_large(limit), {"Connection": "close"})
                    await refusal(scope, receive, send_with_headers)
                else:
                    run = partial(_answer_head, self._app) if scope["method"] == "HEAD" else self._app
                    limited = self._bodies.apply(receive, limit)
                    await _with_failures_answered(run, scope, limited, send_with_headers)
            finally:
                tracing.rename(seen, f"{scope['method']} {route_of(scope)}")
                self._record(scope, status, time.perf_counter() - begun)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count and log the response. Reads that succeed are logged at DEBUG, everything else at INFO."""
        method, route = scope["method"], route_of(scope)
        self._observe(method, route, status, seconds)
        level = logging.DEBUG if method in ("GET", "HEAD", "OPTIONS") and status < 500 else logging.INFO
        fields = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
        log.log(level, "%s %s %d", method, route, status, extra={"fields": fields})

    def _limit(self, scope: Scope, headers: Headers) -> int:
        if scope["method"] == "POST" and scope["path"].endswith("/uploads"):
            return PIECE_BYTES
        is_form = headers.get("content-type", "").strip().lower().startswith("multipart/form-data")
        is_upload = scope["method"] == "POST" and scope["path"].endswith(_UPLOADS) and is_form
        return self._bodies.upload_bytes if is_upload else self._bodies.max_bytes


async def _with_failures_answered(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer an unexpected error with a problem, and log it.

    An error that reached the server would close the connection, and the client's next request on it would fail. Once a
    response has begun there is no other way to say that it is not complete.
    """
    begun = False

    async def send_and_note(message: Message) -> None:
        nonlocal begun
        begun = True
        await send(message)

    try:
        await app(scope, receive, send_and_note)
    except Exception:
        if begun:
            raise
        log.exception("%s %s failed", scope["method"], route_of(scope))
        await refused_early(Request(scope), "internal", INTERNAL_DETAIL)(scope, receive, send)


def _header_fault(scope: Scope) -> str | None:
    """Why a request is refused for its version or headers: a proxy could understand them differently."""
    if scope["http_version"] not in ("1.0", "1.1"):
        return "this server speaks HTTP/1.1"
    names = [name for name, _ in scope["headers"]]
    for name in _ONCE:
        if names.count(name) > 1:
            return f"the header {name.decode()} is there more than once"
    if b"content-length" in names and b"transfer-encoding" in names:
        return "the request has both a Content-Length and a Transfer-Encoding"
    return None


def _keep_slashes(scope: Scope) -> bool:
    """Mark slashes inside segments (`%2F`) in the path, where servers decode them. False for bytes that are no UTF-8.

    So a subject's id may contain slashes, as it may in tasks.
    """
    try:
        segments = [unquote_to_bytes(segment).decode() for segment in scope["raw_path"].split(b"/")]
    except UnicodeDecodeError:
        return False
    scope["path"] = "/".join(segment.replace("/", SLASH) for segment in segments)
    return True


async def _answer_head(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer HEAD like GET without a body. The handler ends with its headers: an event stream would last for hours."""
    started = asyncio.Event()

    async def send_headers(message: Message) -> None:
        if message["type"] == "http.response.start" and not started.is_set():
            await send(message)
            await send({"type": "http.response.body", "body": b""})
            started.set()

    as_get = {**scope, "method": "GET"}  # a copy: the server must still see HEAD
    handler = asyncio.ensure_future(app(as_get, receive, send_headers))
    answered = asyncio.ensure_future(started.wait())
    try:
        await asyncio.wait((handler, answered), return_when=asyncio.FIRST_COMPLETED)
    finally:
        answered.cancel()
        if not handler.done():
            handler.cancel()
        with suppress(asyncio.CancelledError):
            await handler
        if "route" in as_get:
            scope["route"] = as_get["route"]


def route_of(scope: Scope) -> str:
    """The route's pattern, not the path: a client must not be able to create labels of a metric."""
    return str(getattr(scope.get("route"), "path", "none"))


def _too_large(limit: int) -> str:
    return f"the body may have at most {limit} bytes"
