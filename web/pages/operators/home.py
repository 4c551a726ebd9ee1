"""The installation at one look, and a search."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from jobs import overview, screening
from jobs.admission import approvals, pauses, workers
from jobs.owners import accounts, audit_log, search, tokens
from jobs.remote import trainers
from tasks.workers import fleet
from web.auth import ServicesDep
from web.pages.render import render
from web.pages.session import PageOperatorDep, PageRoute

router = APIRouter(prefix="/operators", route_class=PageRoute, include_in_schema=False)


@router.get("")
def operators(request: Request, services: ServicesDep, _: PageOperatorDep) -> Response:
    return render(
        request,
        "operators/home.html",
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
    return render(request, "operators/search.html", q=q.strip(), found=search.search(services, q))
