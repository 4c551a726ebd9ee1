"""Sign-in by OpenID Connect: the way to the provider, and back."""

import hashlib
import hmac
import logging
import secrets
import time
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from core.errors import NotFound, SpecInvalid, Unreachable
from jobs.owners import people
from jobs.owners import sessions as kept_sessions
from jobs.owners.people import Person
from jobs.services import Services
from web.auth import ServicesDep, check_rate
from web.oidc import Attempt, OidcProvider, SignInRefused
from web.pages import session as sessions
from web.pages.render import render
from web.pages.session import PageRoute, safe_path, with_cookie

router = APIRouter(prefix="/oidc", route_class=PageRoute, include_in_schema=False)

log = logging.getLogger(__name__)

_COOKIE = "imprint_oidc"
_LASTS_S = 600
CALLBACK = "/oidc/callback"
_NOT_BEGUN = "This sign-in was not begun in this browser, or it took too long. Sign in again."


def provider_of(services: Services) -> OidcProvider | None:
    """The provider that the settings name. Raises ValueError for settings that lack a part."""
    settings = services.settings
    if settings.oidc_issuer is None:
        return None
    if settings.oidc_client_id is None or settings.public_url is None:
        raise ValueError("IMPRINT_OIDC_ISSUER needs IMPRINT_OIDC_CLIENT_ID and IMPRINT_PUBLIC_URL")
    secret = settings.oidc_client_secret
    return OidcProvider(
        settings.oidc_issuer,
        settings.oidc_client_id,
        secret.get_secret_value() if secret else None,
        settings.oidc_scopes,
        settings.public_url.rstrip("/") + CALLBACK,
    )


@router.get("/sign-in")
def begin(request: Request, back: Annotated[str, Query(alias="next", max_length=500)] = "/") -> Response:
    """To the provider. The cookie binds its answer to this browser."""
    provider = _provider(request)
    check_rate(request, "oidc")
    seed = f"{secrets.token_urlsafe(32)}.{int(time.time()) + _LASTS_S}"
    try:
        answer = RedirectResponse(provider.authorization_address(_attempt(request, seed)), 303)
    except Unreachable as error:
        return _is_away(request, error)
    secure = request.url.scheme == "https"
    back = safe_path(back)
    answer.set_cookie(
        _COOKIE, f"{seed}.{_derive(request, 'next', seed + back)}.{back.encode().hex()}", max_age=_LASTS_S,
        secure=secure, httponly=True, samesite="lax", path="/oidc",
    )  # fmt: skip
    return answer


@router.get("/callback")
def finish(
    request: Request,
    services: ServicesDep,
    code: Annotated[str, Query(max_length=4000)] = "",
    state: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """From the provider: with a code, or without one if it or the person refused."""
    provider = _provider(request)
    check_rate(request, "oidc")
    try:
        seed, back = _from_cookie(request)
        attempt = _attempt(request, seed)
        if not hmac.compare_digest(attempt.state.encode(), state.encode()):
            raise SignInRefused(_NOT_BEGUN)
        if not code:
            raise SignInRefused("The provider did not sign you in.")
        person = Person.parse(provider.claims(code, attempt), services.settings)
        token = people.sign_in(services, person)
    except (SignInRefused, SpecInvalid) as error:
        faults = error.faults if isinstance(error, SpecInvalid) else {"token": str(error)}
        answer: Response = render(request, "sign_in.html", 403, back="/", owner="", faults=faults)
    except Unreachable as error:
        return _is_away(request, error)
    else:
        session_id = kept_sessions.begin(services, token, token.owner_id, request.headers.get("user-agent", ""))
        home = "/operators" if token.owner_id is None and not back.startswith("/operators") else back
        answer = with_cookie(request, home, sessions.signed(request, session_id))
    answer.delete_cookie(_COOKIE, path="/oidc")
    return answer


def _provider(request: Request) -> OidcProvider:
    provider: OidcProvider | None = request.app.state.oidc
    if provider is None:
        raise NotFound("this installation has no sign-in by OpenID Connect")
    return provider


def _is_away(request: Request, error: Unreachable) -> Response:
    log.warning("sign-in by OpenID Connect: %s", error.message)
    fault = {"token": "The sign-in provider does not answer. Try again in a minute, or sign in with a token."}
    return render(request, "sign_in.html", 503, back="/", owner="", faults=fault)


def _attempt(request: Request, seed: str) -> Attempt:
    """The values of one attempt, from what is in the cookie and a key that is not."""
    return Attempt(*(_derive(request, name, seed) for name in ("state", "nonce", "verifier")))


def _derive(request: Request, name: str, text: str) -> str:
    key: bytes = request.app.state.secret
    return hmac.new(key, f"oidc.{name}.{text}".encode(), hashlib.sha256).hexdigest()


def _from_cookie(request: Request) -> tuple[str, str]:
    """The seed of the attempt that this browser has begun, and where it goes then. Raises SignInRefused."""
    parts = request.cookies.get(_COOKIE, "").split(".")
    try:
        random, until, signature, back = parts
        seed, path = f"{random}.{until}", bytes.fromhex(back).decode()
        is_good = hmac.compare_digest(signature.encode(), _derive(request, "next", seed + path).encode())
        if is_good and int(until) > time.time():
            return seed, path
    except ValueError:
        pass
    raise SignInRefused(_NOT_BEGUN)
