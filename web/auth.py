"""Authentication of the API: the token, the owner that it acts for, its scopes and its rate."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Annotated

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from core.actor import identify
from core.names import owner_name_from_header
from jobs.owners import tokens
from jobs.owners.sessions import Credential
from jobs.services import Services
from web.problems import RequestRefused
from web.server.limits import RateLimit

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="A token made by `imprint token create`. Calls with a service token name the owner in `Imprint-Owner`.",
)
_REALM = 'Bearer realm="imprint"'


@dataclass(frozen=True)
class Caller:
    """A request's token, the owner that it may act for, and on the page its session."""

    token: tokens.Token
    owner_id: str
    session_id: str | None = None

    @property
    def credential(self) -> Credential:
        """What ends an open connection of the caller when it is revoked."""
        return Credential(self.token.id, self.session_id)

    @property
    def key(self) -> str:
        """What limits are counted by: a service token has those of each owner that it acts for."""
        return f"{self.token.id} {self.owner_id}"


def services_of(request: Request) -> Services:
    """The services that this app was made with."""
    services: Services = request.app.state.services
    return services


def token_of(
    request: Request,
    given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> tokens.Token:
    """The valid token of a request. Everything else is 401, and the answer does not say why a token is refused."""
    if given is None:
        raise RequestRefused(
            "unauthorized",
            "this address needs a bearer token in the Authorization header",
            {"WWW-Authenticate": _REALM},
        )
    token = tokens.authenticate(services_of(request), given.credentials)
    if token is None:
        headers = {"WWW-Authenticate": f'{_REALM}, error="invalid_token"'}
        raise RequestRefused("unauthorized", "the token is unknown, expired or revoked", headers)
    identify("token", token.id)
    return token


def _check_scope(token: tokens.Token, scope: str) -> None:
    if not token.may(scope):
        headers = {"WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="{scope}"'}
        raise RequestRefused("forbidden", f"this address needs a token with the scope {scope}", headers)


def _owner_of(token: tokens.Token, named: str | None) -> str:
    """The owner that a call acts for: the token's own, or for a service token the one in the header."""
    try:
        owner_id = owner_name_from_header(named) if named is not None and named.strip() else None
    except ValueError as error:
        raise RequestRefused("bad_request", f"the header Imprint-Owner is not the name of an owner: {error}") from None
    if token.has_odd_owner:
        raise RequestRefused(
            "forbidden",
            "the name of this token's owner must be changed first; operators see it with: imprint owners",
        )
    if token.owner_id is None and owner_id is None:
        raise RequestRefused("bad_request", "a service token needs the header Imprint-Owner, which names the owner")
    if token.owner_id is not None and owner_id not in (None, token.owner_id):
        raise RequestRefused("forbidden", "this token belongs to another owner than the one in Imprint-Owner")
    return token.owner_id or owner_id or ""


def check_rate(request: Request, caller: str) -> None:
    """Count a request of `caller`. Raises RequestRefused if the caller has made too many."""
    limit: RateLimit = request.app.state.rate_limit
    if wait_s := limit.acquire(caller):
        raise RequestRefused(
            "rate_limited",
            f"this caller sends too many requests; try again in {wait_s:.1f} s",
            {"Retry-After": str(ceil(wait_s))},
        )


def require_scope(scope: str) -> Callable[..., Caller]:
    """A dependency: the caller, whose token has `scope` and acts for an owner."""

    def caller(
        request: Request,
        token: Annotated[tokens.Token, Depends(token_of)],
        imprint_owner: Annotated[
            str | None,
            Header(
                description="The owner that a service token acts for: UTF-8, percent-encoded (`Jos%C3%A9`) if the "
                "client cannot send that.",
                max_length=4000,
                pattern=r"^[^\x00-\x1f\x7f]+$",
            ),
        ] = None,
    ) -> Caller:
        _check_scope(token, scope)
        made = Caller(token, _owner_of(token, imprint_owner))
        check_rate(request, made.key)
        return made

    return caller


def operator_scope(request: Request) -> str:
    """What a request of an operators' route needs: `view` to see the installation, `operate` to change it."""
    return "view" if request.method in ("GET", "HEAD") else "operate"


def require_operator(request: Request, token: Annotated[tokens.Token, Depends(token_of)]) -> tokens.Token:
    """A dependency of routes that show the whole installation, or change it."""
    _check_scope(token, operator_scope(request))
    check_rate(request, token.id)
    return token


ServicesDep = Annotated[Services, Depends(services_of)]
ReaderDep = Annotated[Caller, Depends(require_scope("read"))]
TrainerDep = Annotated[Caller, Depends(require_scope("train"))]
OperatorDep = Annotated[tokens.Token, Depends(require_operator)]
