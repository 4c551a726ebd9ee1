"""One owner: credits, trainings, tokens and limits, which operators change; and a new name."""

from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Form, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse

from core.errors import SpecInvalid
from jobs.owners import accounts, limits, search, tokens, unusable_names
from jobs.services import Services
from web.auth import ServicesDep
from web.pages.render import render, segment
from web.pages.session import PageOperatorDep, PageRoute
from web.pages.texts import Texts
from web.parameters import FormKey, OwnerPath, TokenId, page_key

router = APIRouter(prefix="/operators", route_class=PageRoute, include_in_schema=False)

LIMITS = {
    "running_jobs": "Trainings that run",
    "waiting_jobs": "Trainings that wait",
    "jobs_per_day": "Trainings per day",
    "credits_per_day": "Credits per day",
    "pictures": "Stored pictures",
    "bytes_stored": "Stored bytes",
}


@router.get("/owners/{owner}")
def owner(request: Request, services: ServicesDep, _: PageOperatorDep, owner_id: OwnerPath) -> Response:
    return _owner(request, services, owner_id)


def _owner(request: Request, services: Services, owner_id: str, secret: str | None = None) -> Response:
    found = search.owner_history(services, owner_id)
    return render(
        request,
        "operators/owner.html",
        found=found,
        own_limits=limits.own_limits(services, owner_id),
        limit_names=Texts(LIMITS),
        key=uuid4().hex,
        secret=secret,
    )


@router.post("/owners/{owner}/grant")
def grant(
    services: ServicesDep, _: PageOperatorDep, owner_id: OwnerPath, key: FormKey,
    amount: Annotated[int, Form(ge=1, le=2**53)],
) -> Response:  # fmt: skip
    accounts.grant(services, owner_id, amount, page_key(key))
    return RedirectResponse(f"/operators/owners/{segment(owner_id)}?notice=granted", 303)


@router.post("/owners/{owner}/tokens")
def create_token(
    request: Request,
    services: ServicesDep,
    _: PageOperatorDep,
    owner_id: OwnerPath,
    name: Annotated[str, Form(max_length=300)] = "",
    scopes: Annotated[list[str] | None, Form(max_length=3)] = None,
    days: Annotated[int | None, Form(ge=1, le=3650)] = None,
) -> Response:
    """The page with the secret of a new token of an owner, which is shown this once."""
    secret, _token = tokens.create(services, name, owner_id=owner_id, scopes=scopes or ("read", "train"), days=days)
    answer = _owner(request, services, owner_id, secret)
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.post("/tokens/{tokenId}/revoke")
def revoke_token(services: ServicesDep, _: PageOperatorDep, token_id: TokenId) -> Response:
    token = tokens.revoke(services, token_id)
    to = f"/operators/owners/{segment(token.owner_id)}" if token.owner_id else "/operators"
    return RedirectResponse(f"{to}?notice=revoked", 303)


@router.post("/owners/{owner}/limits")
async def change_limits(request: Request, services: ServicesDep, _: PageOperatorDep, owner_id: OwnerPath) -> Response:
    """Set every limit that was changed in the form; an empty field is the installation's limit again."""
    form = await request.form(max_files=0, max_fields=20)
    values: dict[str, int | None] = {}
    faults = {}
    for name in limits.NAMES:
        typed = form.get(name)
        if isinstance(typed, str):
            digits = typed.strip()
            if digits and not (digits.isascii() and digits.isdigit() and len(digits) < 17):
                faults[name] = "must be a whole number, or empty"
            values[name] = int(digits) if digits and name not in faults else None
    if faults:
        raise SpecInvalid.of(faults)
    await run_in_threadpool(limits.change_all, services, owner_id, values)
    return RedirectResponse(f"/operators/owners/{segment(owner_id)}?notice=limits#limits", 303)


@router.post("/owners/{owner}/rename")
def rename(
    services: ServicesDep, _: PageOperatorDep, owner_id: OwnerPath, new: Annotated[str, Form(max_length=300)]
) -> Response:
    name = unusable_names.rename(services, owner_id, new)
    return RedirectResponse(f"/operators/owners/{segment(name)}?notice=renamed", 303)
