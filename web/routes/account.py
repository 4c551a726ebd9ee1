"""An owner's credits, e-mail settings and sessions: `/api/account`."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query

from jobs.notices import notices
from jobs.owners import accounts, sessions
from web.auth import ReaderDep, ServicesDep, TrainerDep
from web.models.account import Account, Entry, HoldNow, Notices, NoticesChange, Session, Sessions
from web.parameters import SessionId
from web.problems import ALWAYS, responses

router = APIRouter(prefix="/api", tags=["account"])


@router.get("/account", summary="Get balance, holds and entries", responses=responses(*ALWAYS))
def account(
    services: ServicesDep,
    caller: ReaderDep,
    limit: Annotated[int, Query(ge=1, le=200, description="How many entries to return.")] = 50,
    before: Annotated[int | None, Query(ge=1, le=2**53, description="Return entries older than this `seq`.")] = None,
) -> Account:
    page = accounts.account_page(services, caller.owner_id, limit, before)
    return Account(
        **asdict(page.balance),
        holds=[HoldNow.model_validate(hold) for hold in page.holds],
        entries=[Entry.model_validate(entry) for entry in page.entries],
        next=page.next_seq,
    )


@router.get("/account/notices", summary="Get the e-mail settings", responses=responses(*ALWAYS))
def notices_of(services: ServicesDep, caller: ReaderDep) -> Notices:
    return Notices.model_validate(notices.get(services, caller.owner_id))


@router.patch(
    "/account/notices",
    summary="Change the e-mail settings",
    responses=responses(*ALWAYS, "too_large"),
)
def change_notices(services: ServicesDep, caller: TrainerDep, change: NoticesChange) -> Notices:
    values = {name: getattr(change, name) for name in change.model_fields_set}
    return Notices.model_validate(notices.change(services, caller.owner_id, values))


@router.get("/account/sessions", summary="List the sessions of the page", responses=responses(*ALWAYS))
def sessions_of(services: ServicesDep, caller: ReaderDep) -> Sessions:
    found = sessions.list_sessions(services, caller.owner_id)
    return Sessions(sessions=[Session.model_validate(session) for session in found])


@router.delete(
    "/account/sessions/{sessionId}",
    status_code=204,
    summary="End a session of the page; ending it again changes nothing",
    responses=responses(*ALWAYS, "not_found"),
)
def end_session(services: ServicesDep, caller: TrainerDep, session_id: SessionId) -> None:
    sessions.end(services, session_id, caller.owner_id)
