"""Who looks at the page: a session in a signed cookie, which names a token and an owner and holds no secret.

A session ends with its token: every request asks for the token anew. Forms are taken from our own pages only: the
cookie is SameSite=Strict, and a POST says where it comes from.
"""

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from core.errors import ImprintError, SpecInvalid
from jobs import tokens
from jobs.services import Services
from storage.database import AWAY
from web.auth import Caller, check_rate, services_of
from web.pages.render import render
from web.problems import PROBLEMS, RequestRefused, refusal

COOKIE = "imprint_session"
LASTS_S = 7 * 24 * 3600
_MOST_TOKEN = 200


class SignedOut(Exception):
    """Nobody is signed in: not with this cookie, or not any more."""


@dataclass(frozen=True)
class PageSession:
    """Who is signed in. Without an owner it is an operator, who sees the installation but nobody's pictures."""

    token: tokens.Token
    owner_id: str | None

    def may(self, scope: str) -> bool:
        return scope in self.token.scopes


# ---- the cookie -----------------------------------------------------------------------------------------------


def begin(request: Request, services: Services, secret: str, owner_id: str) -> tuple[PageSession, str]:
    """The session of who shows a token, and its cookie. Raises SpecInvalid, by field."""
    token = tokens.find(services, secret.strip()) if len(secret) <= _MOST_TOKEN else None
    if token is None:
        raise SpecInvalid.of({"token": "This token is unknown, expired or revoked."})
    owner_id = owner_id.strip()
    if token.owner_id and owner_id not in ("", token.owner_id):
        raise SpecInvalid.of({"owner": "This token belongs to another owner: leave the owner empty."})
    session = PageSession(token, token.owner_id or owner_id or None)
    if session.owner_id is None and not session.may("operate"):
        raise SpecInvalid.of({"owner": "This is a service token: name the owner that you want to see."})
    told = {"token": token.id, "owner": session.owner_id, "until": int(time.time()) + LASTS_S}
    body = base64.urlsafe_b64encode(json.dumps(told).encode()).decode()
    return session, f"{body}.{_signature(request, body)}"


def read(request: Request, services: Services) -> PageSession | None:
    """The session of a request's cookie, if it is ours, not over, and its token is still valid."""
    body, _, signature = request.cookies.get(COOKIE, "").partition(".")
    if not hmac.compare_digest(_signature(request, body).encode(), signature.encode()):
        return None
    try:
        told = json.loads(base64.urlsafe_b64decode(body))
    except (binascii.Error, ValueError):
        return None
    token = tokens.valid(services, told["token"]) if time.time() < told["until"] else None
    return None if token is None else PageSession(token, told["owner"])


def _signature(request: Request, body: str) -> str:
    key: bytes = request.app.state.secret
    return hmac.new(key, f"session.{body}".encode(), hashlib.sha256).hexdigest()


# ---- who may --------------------------------------------------------------------------------------------------


def check_origin(request: Request) -> None:
    """Only forms of our own pages: browsers say with every POST where it comes from. Raises RequestRefused."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    from_here = origin is not None and urlsplit(origin).netloc == request.headers.get("host")
    if not from_here or site not in (None, "same-origin"):
        raise RequestRefused("forbidden", "this form was not sent from a page of this service")


def session_of(request: Request, services: Annotated[Services, Depends(services_of)]) -> PageSession:
    """A dependency: who is signed in, and for a POST that it comes from our pages. Raises SignedOut."""
    session = read(request, services)
    if session is None:
        raise SignedOut
    if request.method != "GET":
        check_origin(request)
    request.state.session = session
    check_rate(request, f"{session.token.id} {session.owner_id}")
    return session


SessionDep = Annotated[PageSession, Depends(session_of)]


def require_scope(scope: str) -> Callable[..., Caller]:
    """A dependency: the owner that is signed in, with a token that has `scope`."""

    def caller(session: SessionDep) -> Caller:
        if not session.may(scope):
            raise RequestRefused("forbidden", f"your token has no scope {scope}: sign in with one that has")
        if session.owner_id is None:
            raise RequestRefused("forbidden", "you are signed in for no owner: sign in again and name one")
        return Caller(session.token, session.owner_id)

    return caller


def require_operator(session: SessionDep) -> PageSession:
    """A dependency for what shows the whole installation."""
    if not session.may("operate"):
        raise RequestRefused("forbidden", "this page is for operators: sign in with a token that has the scope operate")
    return session


PageReaderDep = Annotated[Caller, Depends(require_scope("read"))]
PageTrainerDep = Annotated[Caller, Depends(require_scope("train"))]
PageOperatorDep = Annotated[PageSession, Depends(require_operator)]


# ---- what goes wrong ------------------------------------------------------------------------------------------


class PageRoute(APIRoute):
    """A route whose errors are pages too, or the way to the sign-in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except SignedOut:
                return _to_sign_in(request)
            except (RequestRefused, ImprintError, RequestValidationError, HTTPException, *AWAY) as error:
                if request.headers.get("accept") == "application/json":  # the script's uploads
                    raise
                return _as_page(request, error)

        return handled


def _to_sign_in(request: Request) -> Response:
    if request.headers.get("sec-fetch-site") == "cross-site" and request.method == "GET":
        # Who follows a link from a mail comes without the strict cookie; what this page then asks for has it.
        return HTMLResponse('<!doctype html><title>Imprint</title><meta http-equiv="refresh" content="0">')
    back = request.url.path if request.method == "GET" else "/"
    return RedirectResponse(f"/sign-in?{urlencode({'next': back})}", 303)


def _as_page(request: Request, error: Exception) -> Response:
    told = refusal(error)
    status, title = PROBLEMS[told.code]
    page = render(request, "error.html", status, title=title, detail=told.detail, faults=told.faults)
    page.headers.update(told.headers)
    return page
