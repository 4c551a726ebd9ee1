"""The operators' pages: the installation, a search, and all about one job or one owner, with what can be done."""

from typing import Annotated, Literal
from uuid import uuid4

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse

from core.errors import SpecInvalid
from jobs import overview, screening, service
from jobs.admission import approvals, pauses, workers
from jobs.owners import accounts, audit_log, limits, search, tokens, unusable_names
from jobs.remote import trainers
from jobs.services import Services
from tasks.workers import fleet
from web.auth import ServicesDep
from web.files import picture_response
from web.pages.render import render, segment
from web.pages.session import PageOperatorDep, PageRoute
from web.parameters import FormKey, OwnerPath, PictureHash, TokenId, TrainingId, page_key

router = APIRouter(prefix="/operators", route_class=PageRoute, include_in_schema=False)

_Scope = Annotated[str, Form(max_length=100)]


@router.get("")
def operators(request: Request, services: ServicesDep, _: PageOperatorDep) -> Response:
    return render(
        request,
        "operators.html",
        fleet=fleet.inspect(),
        training_workers=workers.list_workers(services),
        remote=trainers.list_trainers(services),
        pods=trainers.list_pods(services, gone=True),
        spending=trainers.spending(services),
        active=overview.active_jobs(services),
        problems=overview.problems(services),
        credits=accounts.totals(services),
        held=screening.list_held(services),
        held_trainings=approvals.list_held(services),
        pauses=pauses.list_pauses(services),
        scopes=pauses.SCOPES,
        tokens=[token for token in tokens.list_tokens(services) if token.owner_id is None],
        log=audit_log.list_entries(services, limit=30),
        flower_url=services.settings.flower_url,
        rents=services.runpod is not None,
    )


@router.get("/search")
def find(
    request: Request, services: ServicesDep, _: PageOperatorDep, q: Annotated[str, Query(max_length=200)] = ""
) -> Response:
    return render(request, "search.html", q=q.strip(), found=search.search(services, q))


# ---- held pictures ------------------------------------------------------------------------------------------------


@router.get("/pictures/{sha256}")
def held_picture(services: ServicesDep, _: PageOperatorDep, sha256: PictureHash) -> Response:
    return picture_response(screening.held_picture(services, sha256), "picture.png")


@router.post("/pictures/{sha256}/decide")
def decide(
    services: ServicesDep,
    _: PageOperatorDep,
    sha256: PictureHash,
    verdict: Annotated[Literal["accept", "refuse"], Form()],
    reason: Annotated[str, Form(max_length=500)] = "",
) -> Response:
    screening.decide(services, sha256, accept=verdict == "accept", reason=reason)
    return RedirectResponse("/operators", 303)


@router.post("/trainings/{id}/decide")
def decide_training(
    services: ServicesDep,
    _: PageOperatorDep,
    training_id: TrainingId,
    verdict: Annotated[Literal["accept", "refuse"], Form()],
    reason: Annotated[str, Form(max_length=500)] = "",
) -> Response:
    if verdict == "accept":
        approvals.approve(services, training_id)
    else:
        approvals.refuse(services, training_id, reason)
    return RedirectResponse("/operators", 303)


# ---- one job ------------------------------------------------------------------------------------------------------


@router.get("/jobs/{id}")
def job(request: Request, services: ServicesDep, _: PageOperatorDep, job_id: TrainingId) -> Response:
    return render(request, "operators_job.html", found=search.job_history(services, job_id), key=uuid4().hex)


@router.post("/jobs/{id}/cancel")
def cancel(services: ServicesDep, _: PageOperatorDep, job_id: TrainingId) -> Response:
    service.cancel(services, job_id)
    return _to_job(job_id, "cancelled")


@router.post("/jobs/{id}/retry")
def retry(services: ServicesDep, _: PageOperatorDep, job_id: TrainingId, key: FormKey) -> Response:
    view = service.retry(services, job_id, None, page_key(key))
    return _to_job(view.job_id, "started")


@router.post("/jobs/{id}/refund")
def refund(
    services: ServicesDep, _: PageOperatorDep, job_id: TrainingId, key: FormKey,
    amount: Annotated[int, Form(ge=1, le=2**53)],
) -> Response:  # fmt: skip
    accounts.refund(services, job_id, amount, page_key(key))
    return _to_job(job_id, "refunded")


def _to_job(job_id: str, notice: str) -> Response:
    return RedirectResponse(f"/operators/jobs/{job_id}?notice={notice}", 303)


# ---- one owner ----------------------------------------------------------------------------------------------------


@router.get("/owners/{owner}")
def owner(request: Request, services: ServicesDep, _: PageOperatorDep, owner_id: OwnerPath) -> Response:
    return _owner(request, services, owner_id)


def _owner(request: Request, services: Services, owner_id: str, secret: str | None = None) -> Response:
    found = search.owner_history(services, owner_id)
    return render(
        request,
        "operators_owner.html",
        found=found,
        own_limits=limits.own_limits(services, owner_id),
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


# ---- queues and workers -------------------------------------------------------------------------------------------


@router.post("/pauses")
def pause(
    services: ServicesDep, _: PageOperatorDep, scope: _Scope, reason: Annotated[str, Form(max_length=300)] = ""
) -> Response:
    pauses.pause(services, scope, reason.strip())
    return RedirectResponse("/operators?notice=paused#turns", 303)


@router.post("/pauses/end")
def resume(services: ServicesDep, _: PageOperatorDep, scope: _Scope) -> Response:
    pauses.resume(services, scope)
    return RedirectResponse("/operators?notice=resumed#turns", 303)


@router.post("/workers/drain")
def drain(
    services: ServicesDep,
    _: PageOperatorDep,
    worker: Annotated[str, Form(max_length=300)],
    on: Annotated[Literal["yes", "no"], Form()] = "yes",
) -> Response:
    workers.drain(services, worker, on == "yes")
    return RedirectResponse(f"/operators?notice={'draining' if on == 'yes' else 'undrained'}#turns", 303)
