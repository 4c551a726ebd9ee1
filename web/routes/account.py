"""An owner's credits and e-mail settings: `/api/account`."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query

from jobs import accounts
from jobs.notices import notices
from web.auth import ReaderDep, ServicesDep, TrainerDep
from web.models.account import Account, Entry, HoldNow, Notices, NoticesChange
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
