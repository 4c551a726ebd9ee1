"""What waits for an operator's decision: pictures that the screener holds, and trainings that need an approval."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Response
from fastapi.responses import RedirectResponse

from jobs import screening
from jobs.admission import approvals
from web.auth import ServicesDep
from web.files import picture_response
from web.pages.session import PageOperatorDep, PageRoute
from web.parameters import PictureHash, TrainingId

router = APIRouter(prefix="/operators", route_class=PageRoute, include_in_schema=False)


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
