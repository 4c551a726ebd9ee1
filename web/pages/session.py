"""Sessions of the page: a signed cookie that names a session and contains no secret.

Every request looks up the session and its token, so it ends with either (`jobs.owners.sessions`). Forms are accepted
from our own pages only: the cookie is SameSite=Strict, and the origin of every POST is checked.
"""

import hashlib
import hmac
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from core.actor import identify
from core.errors import ImprintError, SpecInvalid
from core.names import owner_name
from jobs.owners import sessions, tokens
from jobs.services import Services
from storage.database import AWAY
from web.auth import Caller, check_rate, operator_scope, services_of
from web.pages.errors import as_asked, error_page
from web.pages.texts import gettext
from web.problems import RequestRefused

COOKIE = "imprint_session"
LASTS_S = int(sessions.LASTS.total_seconds())
_MOST_TOKEN = 200


class SignedOut(Exception):
    """The request has no valid session."""


@dataclass(frozen=True)
class PageSession:
    """A signed-in user. Without an owner it is an operator, who sees the installation but no subjects."""

    id: str
    token: tokens.Token
    owner_id: str | None

    def may(self, scope: str) -> bool:
        return self.token.may(scope)


# ---- the cookie -----------------------------------------------------------------------------------------------


def begin(request: Request, services: Services, secret: str, owner_id: str) -> tuple[PageSession, str]:
    """A new session for a token, and its cookie. Raises SpecInvalid with faults by field."""
    token = tokens.authenticate(services, secret.strip()) if len(secret) <= _MOST_TOKEN else None
    if token is None:
        raise SpecInvalid.of({"token": gettext("This token is unknown, expired or revoked.")})
    owner = _owner_of(token, owner_id)
    if owner is None and not token.may("view"):
        raise SpecInvalid.of(
            {"owner": gettext("This is a service token. Enter the owner whose subjects you want to see.")}
        )
    session_id = sessions.begin(services, token, owner, request.headers.get("user-agent", ""))
    return PageSession(session_id, token, owner), signed(request, session_id)


def signed(request: Request, session_id: str) -> str:
    """The cookie of a session."""
    return f"{session_id}.{_signature(request, session_id)}"


def with_cookie(request: Request, home: str, cookie: str) -> Response:
    """To `home`, signed in."""
    answer = RedirectResponse(home, 303)
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, cookie, max_age=LASTS_S, secure=secure, httponly=True, samesite="strict")
    return answer


def safe_path(back: str) -> str:
    """Where to go after the sign-in: a path of this service, never another site."""
    return back if back.startswith("/") and not back.startswith("//") and "\\" not in back else "/"


def _owner_of(token: tokens.Token, entered: str) -> str | None:
    """The owner of a session: the token's own, or the one that was entered. Raises SpecInvalid."""
    try:
        entered = owner_name(entered) if entered.strip() else ""
    except ValueError as error:
        raise SpecInvalid.of({"owner": f"This is not the name of an owner: {error}."}) from None
    if token.has_odd_owner:
        raise SpecInvalid.of(
            {"token": gettext("The name of this token's owner must be changed first. Ask the operator.")}
        )
    if token.owner_id and entered not in ("", token.owner_id):
        raise SpecInvalid.of({"owner": gettext("This token belongs to another owner. Leave this field empty.")})
    return token.owner_id or entered or None


def from_cookie(request: Request, services: Services) -> PageSession | None:
    """The session of a request's cookie, if the signature is right and neither it nor its token has ended."""
    session_id, _, signature = request.cookies.get(COOKIE, "").partition(".")
    if not hmac.compare_digest(_signature(request, session_id).encode(), signature.encode()):
        return None
    found = sessions.authenticate(services, session_id)
    return None if found is None else PageSession(session_id, *found)


def _signature(request: Request, session_id: str) -> str:
    key: bytes = request.app.state.secret
    return hmac.new(key, f"session.{session_id}".encode(), hashlib.sha256).hexdigest()


# ---- dependencies -----------------------------------------------------------------------------------------------


def check_origin(request: Request) -> None:
    """Accept forms of our own pages only: browsers send the origin with every POST. Raises RequestRefused."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    is_own = origin is not None and urlsplit(origin).netloc == request.headers.get("host")
    if not is_own or site not in (None, "same-origin"):
        raise RequestRefused(
            "forbidden", "this form was not sent from a page of this service; open the page again and retry"
        )


def session_of(request: Request, services: Annotated[Services, Depends(services_of)]) -> PageSession:
    """A dependency: the session, and for a POST the check of its origin. Raises SignedOut."""
    session = from_cookie(request, services)
    if session is None:
        raise SignedOut
    if request.method != "GET":
        check_origin(request)
    request.state.session = session
    if session.token.person is not None and session.owner_id is None:
        identify("person", session.token.name)
    else:  # an owner's name may be deleted, and must not stay in the audit log
        identify("token", session.token.id)
    check_rate(request, f"{session.token.id} {session.owner_id}")
    return session


SessionDep = Annotated[PageSession, Depends(session_of)]


def require_scope(scope: str) -> Callable[..., Caller]:
    """A dependency: the signed-in owner, whose token has `scope`."""

    def caller(session: SessionDep) -> Caller:
        if not session.may(scope):
            raise RequestRefused(
                "forbidden", f"your token does not have the scope {scope}; sign in with a token that has it"
            )
        if session.owner_id is None:
            raise RequestRefused("forbidden", "you are signed in without an owner; sign in again and enter one")
        return Caller(session.token, session.owner_id, session.id)

    return caller


def require_operator(request: Request, session: SessionDep) -> PageSession:
    """A dependency of pages that show the whole installation: viewers may see them, and operators change it."""
    if not session.may("view"):
        raise RequestRefused("forbidden", "this page is for operators; sign in with a token that has the scope operate")
    if not session.may(scope := operator_scope(request)):
        raise RequestRefused("forbidden", f"you may see this page but change nothing; that needs the scope {scope}")
    return session


PageReaderDep = Annotated[Caller, Depends(require_scope("read"))]
PageTrainerDep = Annotated[Caller, Depends(require_scope("train"))]
PageOperatorDep = Annotated[PageSession, Depends(require_operator)]


# ---- errors --------------------------------------------------------------------------------------------------


class PageRoute(APIRoute):
    """A route that answers errors with a page, or with a redirect to the sign-in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except SignedOut:
                return _to_sign_in(request)
            except (RequestRefused, ImprintError, RequestValidationError, HTTPException, *AWAY) as error:
                if request.headers.get("accept") == "application/json":  # the script's uploads
                    return as_asked(request, error)
                return error_page(request, error)

        return handled


def _to_sign_in(request: Request) -> Response:
    if request.headers.get("sec-fetch-site") == "cross-site" and request.method == "GET":
        # A link in an e-mail is followed without the strict cookie. The reload comes from our page and carries it.
        return HTMLResponse('<!doctype html><title>Imprint</title><meta http-equiv="refresh" content="0">')
    back = request.url.path if request.method == "GET" else "/"
    return RedirectResponse(f"/sign-in?{urlencode({'next': back})}", 303)
