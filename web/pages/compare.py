"""Two trainings of an owner beside each other: recipe, outcome, loss and samples."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from jobs import previews, service
from jobs.results import comparison
from web.auth import ServicesDep
from web.pages.chart import loss_curves
from web.pages.render import render
from web.pages.results import SampleGrid, grid_of
from web.pages.session import PageReaderDep, PageRoute
from web.pages.trainings import losses_of
from web.parameters import TrainingId

router = APIRouter(prefix="/trainings/{id}", route_class=PageRoute, include_in_schema=False)


@router.get("/compare")
def compare(
    request: Request,
    services: ServicesDep,
    caller: PageReaderDep,
    job_id: TrainingId,
    other: Annotated[str, Query(alias="with", max_length=100, pattern=r"^[a-z0-9_]*$")] = "",
    prompt: Annotated[int, Query(ge=0, le=100)] = 0,
) -> Response:
    """`with`: the other training; by default the one before."""
    owner_id = caller.owner_id
    before = other or comparison.previous(services, job_id, owner_id) or job_id
    found = comparison.compare(services, before, job_id, owner_id)
    pair = (found.before, found.after)
    curves = [losses_of(service.events(services, view.job_id, owner_id=owner_id)) for view in pair]
    subject_id = found.after.subject_id
    return render(
        request,
        "compare.html",
        found=found,
        chart=loss_curves(curves[0], curves[1]),
        samples=_pairs(*(grid_of(view, previews.names(services, view.job_id, owner_id)) for view in pair)),
        prompt=prompt,
        others=[
            view
            for view in service.jobs(services, owner_id=owner_id, subject_id=subject_id, limit=50)
            if view.job_id != job_id
        ],
    )


def _pairs(before: SampleGrid, after: SampleGrid) -> list[tuple[str, str, str]]:
    """For each prompt of both its text and the name of the last sample of each training."""
    old = {row.text: row for row in before.rows}
    return [
        (row.text, old[row.text].names[max(old[row.text].names)], row.names[max(row.names)])
        for row in after.rows
        if row.text in old
    ]
