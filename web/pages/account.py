"""Sign-in and sign-out, static files, and an owner's account."""

from typing import Annotated

from fastapi import APIRouter, Form, Path, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from core.clock import utcnow
from core.errors import NotFound, SpecInvalid
from jobs.deletion import requests
from jobs.notices import notices
from jobs.owners import accounts, sign_in_links, tokens
from jobs.owners import sessions as kept_sessions
from jobs.services import Services
from notifications.preferences import EVENTS
from web.auth import Caller, ServicesDep
from web.pages import session as sessions
from web.pages import texts
from web.pages.assets import STATIC
from web.pages.render import packed, render, segment
from web.pages.session import (
    COOKIE,
    PageReaderDep,
    PageRoute,
    PageTrainerDep,
    SessionDep,
    check_origin,
    safe_path,
    with_cookie,
)
from web.parameters import DeletionId, SessionId, TokenId

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)

_PAGE = 25  # entries
LinkSecret = Annotated[str, Path(min_length=20, max_length=60, pattern=r"^[A-Za-z0-9_-]+$")]
EVENT_TEXTS = {
    "training.processing": "A training begins",
    "training.review": "Captions wait for a review",
    "training.completed": "A training is ready",
    "training.failed": "A training failed",
    "training.cancelled": "A training was cancelled",
    "training.not_started": "An automatic training was not started",
    "training.refused": "A request by message was refused",
    "credits.low": "Few credits are left",
}
_EVENTS = {event: EVENT_TEXTS.get(event, event) for event in EVENTS}
_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@router.post("/language")
def choose_language(
    request: Request, chosen: Annotated[str, Form(alias="language", max_length=10)] = "",
    back: Annotated[str, Form(alias="next", max_length=500)] = "/",
) -> Response:  # fmt: skip
    """Keep the language of this browser; an empty one is the browser's own."""
    check_origin(request)
    answer = RedirectResponse(safe_path(back), 303)
    if chosen in texts.LANGUAGES:
        answer.set_cookie(texts.COOKIE, chosen, max_age=365 * 86400, httponly=True, samesite="strict")
    else:
        answer.delete_cookie(texts.COOKIE)
    return answer


# ---- sign-in and sign-out --------------------------------------------------------------------------------------


@router.get("/sign-in")
def sign_in(request: Request, back: Annotated[str, Query(alias="next", max_length=500)] = "/") -> Response:
    return render(request, "sign_in.html", back=safe_path(back), owner="", faults={})


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
        return render(request, "sign_in.html", 422, back=safe_path(back), owner=owner, faults=error.faults)
    return with_cookie(request, "/operators" if session.owner_id is None else safe_path(back), cookie)


@router.get("/sign-in/{secret}")
def follow_link(request: Request, services: ServicesDep, secret: LinkSecret) -> Response:
    """Ask before the link is used up: what only fetches it, such as a preview in a chat, must not use it."""
    owner_id = sign_in_links.owner_of(services, secret)
    return render(request, "sign_in_link.html", 200 if owner_id else 404, owner=owner_id)


@router.post("/sign-in/{secret}")
def use_link(request: Request, services: ServicesDep, secret: LinkSecret) -> Response:
    check_origin(request)
    token = sign_in_links.redeem(services, secret)
    if token is None or token.owner_id is None:
        return render(request, "sign_in_link.html", 404, owner=None)
    session_id = kept_sessions.begin(services, token, token.owner_id, request.headers.get("user-agent", ""))
    return with_cookie(request, "/", sessions.signed(request, session_id))


@router.get("/signed-in")
def signed_in(request: Request, _: SessionDep) -> Response:
    """Where the tab arrives that was opened because the session of another tab had ended."""
    return render(request, "signed_in.html")


@router.post("/sign-out")
def end_session(request: Request, services: ServicesDep, session: SessionDep) -> Response:
    kept_sessions.end(services, session.id)
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(COOKIE, secure=request.url.scheme == "https", httponly=True, samesite="strict")
    return answer


@router.get("/static/{name}")
def static(request: Request, name: Annotated[str, Path(max_length=60, pattern=r"^[a-z_]+\.(css|js|svg)$")]) -> Response:
    path = STATIC / name
    if not path.is_file():
        raise NotFound(f"there is no file {name}")
    body, encoding = packed(request, path.read_bytes())
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding", **encoding}
    return Response(body, media_type=_KINDS[path.suffix], headers=headers)


# ---- credits --------------------------------------------------------------------------------------------------


@router.get("/account")
def account(
    request: Request,
    services: ServicesDep,
    caller: PageReaderDep,
    before: Annotated[int | None, Query(ge=1, le=2**53)] = None,
) -> Response:
    return _account(request, services, caller, before)


def _account(
    request: Request, services: Services, caller: Caller, before: int | None = None, secret: str | None = None
) -> Response:
    """The page of an owner's account. `secret`: of a token that was just created."""
    owner_id = caller.owner_id
    page = accounts.account_page(services, owner_id, _PAGE, before)
    ids = [*(entry.training_id for entry in page.entries), *(hold.training_id for hold in page.holds)]
    top_up = services.settings.web_top_up_url
    return render(
        request,
        "account.html",
        account=page,
        subjects=accounts.subjects_of(services, owner_id, filter(None, ids)),
        before=before,
        top_up=top_up.replace("{owner}", segment(owner_id)) if top_up else None,
        notices=notices.get(services, owner_id),
        events=_EVENTS,
        sends_mail=services.settings.smtp_url is not None,
        tokens=[token for token in tokens.list_tokens(services, owner_id) if token.is_valid(utcnow())],
        own_token=caller.token.id,
        secret=secret,
        sessions=kept_sessions.list_sessions(services, owner_id),
        session_id=caller.session_id,
        deletions=requests.list_open(services, owner_id),
        may_train="train" in caller.token.scopes,
        faults={},
    )


@router.get("/account/entries.csv")
def entries(services: ServicesDep, caller: PageReaderDep) -> Response:
    headers = {"Content-Disposition": 'attachment; filename="imprint-account.csv"'}
    lines = accounts.csv_lines(services, caller.owner_id)
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)


@router.post("/account/notices")
def change_notices(
    services: ServicesDep,
    caller: PageTrainerDep,
    email: Annotated[str, Form(max_length=320)] = "",
    event: Annotated[list[str] | None, Form(max_length=20)] = None,
    low_credits: Annotated[str, Form(max_length=20)] = "",
) -> Response:
    low = low_credits.strip()
    if low and not (low.isascii() and low.isdigit()):
        raise SpecInvalid.of({"low_credits": "must be a whole number"})
    values = {"email": email.strip() or None, "events": event or [], "low_credits": int(low) if low else None}
    notices.change(services, caller.owner_id, values)
    return RedirectResponse("/account?notice=notices", 303)


@router.post("/account/tokens")
def create_token(
    request: Request,
    services: ServicesDep,
    caller: PageTrainerDep,
    name: Annotated[str, Form(max_length=300)] = "",
    days: Annotated[int | None, Form(ge=1, le=3650)] = None,
) -> Response:
    """The page with the secret of a new token, which is shown this once."""
    secret, _ = tokens.create_own(services, caller.token, caller.owner_id, name, days)
    answer = _account(request, services, caller, secret=secret)
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.post("/account/tokens/{tokenId}/revoke")
def revoke_token(services: ServicesDep, caller: PageTrainerDep, token_id: TokenId) -> Response:
    tokens.revoke(services, token_id, caller.owner_id)
    return RedirectResponse("/account?notice=revoked#tokens", 303)


@router.post("/account/delete")
def delete(
    request: Request, services: ServicesDep, caller: PageTrainerDep, confirm: Annotated[str, Form(max_length=300)] = ""
) -> Response:
    if confirm.strip() != caller.owner_id:
        raise SpecInvalid.of({"confirm": "write your owner's name as it is shown"})
    deletion = requests.delete_owner(services, caller.owner_id, services.settings.web_undo_s)
    return RedirectResponse("/account?notice=deleting" if deletion.status == "waiting" else "/sign-in", 303)


@router.post("/deletions/{deletionId}/undo")
def undo_deletion(services: ServicesDep, caller: PageTrainerDep, deletion_id: DeletionId) -> Response:
    undone = requests.undo(services, deletion_id, caller.owner_id)
    back = "/account"
    if undone.kind == "training":
        back = f"/trainings/{undone.target_id}"
    elif undone.subject_id:
        back = f"/subjects/{segment(undone.subject_id)}"
    return RedirectResponse(f"{back}?notice=undone", 303)


@router.post("/account/sessions/{sessionId}/end")
def end_other_session(services: ServicesDep, caller: PageReaderDep, session_id: SessionId) -> Response:
    kept_sessions.end(services, session_id, caller.owner_id)
    return RedirectResponse("/account?notice=ended", 303)


@router.post("/account/sessions/end-others")
def end_other_sessions(services: ServicesDep, caller: PageReaderDep) -> Response:
    kept_sessions.end_all(services, caller.owner_id, keep=caller.session_id)
    return RedirectResponse("/account?notice=ended", 303)
