"""Queues are paused, and workers drained."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Response
from fastapi.responses import RedirectResponse

from jobs.admission import pauses, workers
from web.auth import ServicesDep
from web.pages.session import PageOperatorDep, PageRoute

router = APIRouter(prefix="/operators", route_class=PageRoute, include_in_schema=False)

_Scope = Annotated[str, Form(max_length=100)]


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
