"""The list of all trainings of an owner, with filters."""

from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from jobs import overview, service
from storage.tables.jobs import Status
from web.auth import ServicesDep
from web.pages.render import render
from web.pages.session import PageReaderDep, PageRoute
from web.pages.texts import Texts

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_PAGE = 25  # trainings
FILTERS = {"": "All", "active": "Waiting or training", "ready": "Ready", "failed": "Failed", "cancelled": "Cancelled"}


@router.get("/trainings")
def trainings(
    request: Request,
    services: ServicesDep,
    caller: PageReaderDep,
    show: Literal["", "active", "ready", "failed", "cancelled"] = "",
    subject: Annotated[str, Query(max_length=400)] = "",
    before: Annotated[str | None, Query(max_length=100, pattern=r"^[a-z0-9_]+$")] = None,
) -> Response:
    subject = subject.strip()
    found = service.jobs(
        services,
        owner_id=caller.owner_id,
        subject_id=subject or None,
        statuses=[Status(show)] if show and show != "active" else (),
        active=show == "active",
        limit=_PAGE + 1,
        before=before,
    )
    chosen = {name: value for name, value in {"show": show, "subject": subject}.items() if value}
    shown = found[:_PAGE]
    return render(
        request,
        "trainings.html",
        trainings=shown,
        show=show,
        filters=Texts(FILTERS),
        subject=subject,
        subjects=overview.subject_names(services, caller.owner_id),
        newest=f"/trainings?{urlencode(chosen)}" if before else "",
        older=f"/trainings?{urlencode({**chosen, 'before': shown[-1].job_id})}" if len(found) > _PAGE else "",
    )
