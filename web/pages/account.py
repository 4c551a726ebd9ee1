"""Sign-in and sign-out, static files, an owner's account, and the operators' page."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Path, Query, Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from core.errors import NotFound, SpecInvalid
from jobs import overview, screening
from jobs.admission import pauses
from jobs.deletion import requests
from jobs.owners import accounts, audit_log
from jobs.owners import sessions as kept_sessions
from jobs.remote import trainers
from tasks.workers import fleet
from web.auth import ServicesDep
from web.files import picture_response
from web.pages import session as sessions
from web.pages.render import STATIC, render
from web.pages.session import (
    COOKIE,
    LASTS_S,
    PageOperatorDep,
    PageReaderDep,
    PageRoute,
    PageTrainerDep,
    SessionDep,
    check_origin,
)
from web.parameters import DeletionId, PictureHash, SessionId

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)

_PAGE = 25  # entries
_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


# ---- sign-in and sign-out --------------------------------------------------------------------------------------


@router.get("/sign-in")
def sign_in(request: Request, back: Annotated[str, Query(alias="next", max_length=500)] = "/") -> Response:
    return render(request, "sign_in.html", back=_safe_path(back), owner="", faults={})


@router.post("/sign-in")
def begin_session(
    request: Request,
    services: ServicesDep,
    token: Annotated[str, Form(max_length=500)] = "",
    owner: Annotated[str, Form(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = "",
    back: Annotated[str, Form(alias="next", max_length=500)] = "/",
) -> Response:
    check_origin(request)
    try:
        session, cookie = sessions.begin(request, services, token, owner)
    except SpecInvalid as error:
        return render(request, "sign_in.html", 422, back=_safe_path(back), owner=owner, faults=error.faults)
    home = "/operators" if session.owner_id is None else _safe_path(back)
    answer = RedirectResponse(home, 303)
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, cookie, max_age=LASTS_S, secure=secure, httponly=True, samesite="strict")
    return answer


@router.post("/sign-out")
def end_session(request: Request, services: ServicesDep, session: SessionDep) -> Response:
    kept_sessions.end(services, session.id)
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(COOKIE, secure=request.url.scheme == "https", httponly=True, samesite="strict")
    return answer


def _safe_path(back: str) -> str:
    """Where to go after the sign-in: a path of this service, never another site."""
    return back if back.startswith("/") and not back.startswith("//") and "\\" not in back else "/"


@router.get("/static/{name}")
def static(name: Annotated[str, Path(max_length=60, pattern=r"^[a-z_]+\.(css|js|svg)$")]) -> Response:
    path = STATIC / name
    if not path.is_file():
        raise NotFound(f"there is no file {name}")
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return FileResponse(path, media_type=_KINDS[path.suffix], headers=headers)


# ---- credits --------------------------------------------------------------------------------------------------


@router.get("/account")
def account(
    request: Request,
    services: ServicesDep,
    caller: PageReaderDep,
    before: Annotated[int | None, Query(ge=1, le=2**53)] = None,
) -> Response:
    page = accounts.account_page(services, caller.owner_id, _PAGE, before)
    return render(
        request,
        "account.html",
        account=page,
        before=before,
        sessions=kept_sessions.list_sessions(services, caller.owner_id),
        session_id=caller.session_id,
        deletions=requests.list_open(services, caller.owner_id),
        may_train="train" in caller.token.scopes,
        faults={},
    )


@router.post("/account/delete")
def delete(
    request: Request, services: ServicesDep, caller: PageTrainerDep, confirm: Annotated[str, Form(max_length=300)] = ""
) -> Response:
    if confirm.strip() != caller.owner_id:
        raise SpecInvalid.of({"confirm": "write your owner's name as it is shown"})
    requests.delete_owner(services, caller.owner_id)
    return RedirectResponse("/sign-in", 303)


@router.post("/deletions/{deletionId}/undo")
def undo_deletion(services: ServicesDep, caller: PageTrainerDep, deletion_id: DeletionId) -> Response:
    requests.undo(services, deletion_id, caller.owner_id)
    return RedirectResponse("/account?notice=undone", 303)


@router.post("/account/sessions/{sessionId}/end")
def end_other_session(services: ServicesDep, caller: PageReaderDep, session_id: SessionId) -> Response:
    kept_sessions.end(services, session_id, caller.owner_id)
    return RedirectResponse("/account?notice=ended", 303)


@router.post("/account/sessions/end-others")
def end_other_sessions(services: ServicesDep, caller: PageReaderDep) -> Response:
    kept_sessions.end_all(services, caller.owner_id, keep=caller.session_id)
    return RedirectResponse("/account?notice=ended", 303)


# ---- the installation -----------------------------------------------------------------------------------------


@router.get("/operators")
def operators(request: Request, services: ServicesDep, _: PageOperatorDep) -> Response:
    return render(
        request,
        "operators.html",
        fleet=fleet.inspect(),
        remote=trainers.list_trainers(services),
        pods=trainers.list_pods(services, gone=True),
        spending=trainers.spending(services),
        active=overview.active_jobs(services),
        problems=overview.problems(services),
        credits=accounts.totals(services),
        held=screening.list_held(services),
        pauses=pauses.list_pauses(services),
        log=audit_log.list_entries(services, limit=30),
        flower_url=services.settings.flower_url,
        rents=services.runpod is not None,
    )


@router.get("/operators/pictures/{sha256}")
def held_picture(services: ServicesDep, _: PageOperatorDep, sha256: PictureHash) -> Response:
    return picture_response(screening.held_picture(services, sha256), "picture.png")


@router.post("/operators/pictures/{sha256}/decide")
def decide(
    services: ServicesDep,
    _: PageOperatorDep,
    sha256: PictureHash,
    verdict: Annotated[Literal["accept", "refuse"], Form()],
    reason: Annotated[str, Form(max_length=500)] = "",
) -> Response:
    screening.decide(services, sha256, accept=verdict == "accept", reason=reason)
    return RedirectResponse("/operators", 303)
