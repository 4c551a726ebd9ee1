"""Drawings on the page of a training ("Try it"): the form, what is drawn, and the pictures."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form, Query, Response
from fastapi.responses import RedirectResponse

from core.errors import SpecInvalid
from jobs.drawings import drawings as service
from jobs.drawings.drawing_request import MAX_PROMPT, DrawingPlan
from jobs.drawings.drawing_view import DrawingView
from jobs.services import Services
from jobs.view import JobView
from storage.tables.jobs import Status
from web.auth import ServicesDep
from web.files import picture_response
from web.pages.session import PageReaderDep, PageRoute, PageTrainerDep
from web.parameters import DrawingId, DrawnNumber, FormKey, TrainingId, page_key

router = APIRouter(route_class=PageRoute, include_in_schema=False)

SHOWN = 12  # drawings on the page of a training
COUNTS = (1, 2, 4, 8)


def list_drawings(services: Services, job_id: str, owner_id: str) -> list[DrawingView]:
    """The drawings that the page of a training shows."""
    return service.of_training(services, job_id, owner_id, SHOWN)


@dataclass(frozen=True)
class DrawingChoice:
    """The fields of the form, as they were typed; the price depends on two of them."""

    count: int
    compare: bool
    prompt: str = ""
    strength: float = 1.0
    seed: str = ""


def choice(
    count: Annotated[int, Query(ge=1, le=8)] = 1,
    compare: Annotated[str, Query(max_length=3)] = "",
    prompt: Annotated[str, Query(max_length=2 * MAX_PROMPT)] = "",
    strength: Annotated[float, Query(ge=-2, le=2, allow_inf_nan=False)] = 1.0,
    seed: Annotated[str, Query(max_length=20)] = "",
) -> DrawingChoice:
    """A dependency: what a browser without script sends to see the price."""
    return DrawingChoice(count, compare == "yes", prompt, strength, seed)


ChoiceDep = Annotated[DrawingChoice, Depends(choice)]


def price(services: Services, job: JobView, chosen: DrawingChoice) -> DrawingPlan | None:
    """The price of a drawing with the LoRA of a training; None if it has none."""
    if job.status != Status.READY or job.lora is None:
        return None
    asked = {"count": chosen.count, "compare": chosen.compare}
    return service.price(services, {"owner_id": job.owner_id, "job_id": job.job_id, "prompt": "x", **asked})


@router.post("/trainings/{id}/draw")
def draw(
    services: ServicesDep,
    caller: PageTrainerDep,
    job_id: TrainingId,
    key: FormKey,
    prompt: Annotated[str, Form(max_length=2 * MAX_PROMPT)] = "",
    strength: Annotated[float, Form(ge=-2, le=2, allow_inf_nan=False)] = 1.0,
    seed: Annotated[str, Form(max_length=20)] = "",
    count: Annotated[int, Form(ge=1, le=8)] = 1,
    compare: Annotated[Literal["yes"] | None, Form()] = None,
) -> Response:
    arguments = {
        "owner_id": caller.owner_id,
        "job_id": job_id,
        "prompt": prompt.replace("\r\n", "\n"),
        "strength": strength,
        "seed": _seed(seed),
        "count": count,
        "compare": compare is not None,
        "idempotency_key": page_key(key),
    }
    service.submit(services, arguments)
    return RedirectResponse(f"/trainings/{job_id}?notice=drawing#drawings", 303)


def _seed(typed: str) -> int | None:
    typed = typed.strip()
    if typed and not (typed.isascii() and typed.isdigit()):
        raise SpecInvalid.of({"seed": "must be a whole number"})
    return int(typed) if typed else None


@router.get("/drawings/{drawingId}")
def drawing(services: ServicesDep, caller: PageReaderDep, drawing_id: DrawingId) -> Response:
    view = service.get(services, drawing_id, caller.owner_id)
    return RedirectResponse(f"/trainings/{view.job_id}#{view.drawing_id}", 303)


@router.post("/drawings/{drawingId}/cancel")
def cancel(services: ServicesDep, caller: PageTrainerDep, drawing_id: DrawingId) -> Response:
    view = service.cancel(services, drawing_id, caller.owner_id)
    return RedirectResponse(f"/trainings/{view.job_id}?notice=undrawn#drawings", 303)


@router.get("/drawings/{drawingId}/images/{number}")
def image(services: ServicesDep, caller: PageReaderDep, drawing_id: DrawingId, number: DrawnNumber) -> Response:
    return picture_response(service.picture(services, drawing_id, number, caller.owner_id), "drawn.png")
