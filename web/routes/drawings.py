"""Drawings with the LoRA of a training: `/api/trainings/{id}/drawings` and `/api/drawings/{drawingId}`."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from jobs.drawings import drawings as service
from web.auth import ReaderDep, ServicesDep, TrainerDep
from web.files import picture_response
from web.models.drawings import Drawing, DrawingPrice, Drawings, DrawRequest, drawing_of, price_of
from web.parameters import DrawingId, DrawnNumber, IdempotencyKey, TrainingId, api_key
from web.problems import ALWAYS, responses

router = APIRouter(prefix="/api", tags=["drawings"])

_ONE = (*ALWAYS, "not_found")


@router.post(
    "/trainings/{id}/drawings",
    status_code=202,
    summary="Draw with the LoRA of a training, or get the price",
    description="A worker draws, and credits are held until the drawing ends. With `dryRun=true` nothing is started, "
    "and the answer is 200 with the price.",
    responses={
        200: {"model": DrawingPrice, "description": "The price (`dryRun`)."},
        202: {"headers": {"Location": {"description": "The drawing.", "schema": {"type": "string"}}}},
        **responses(*_ONE, "illegal_move", "insufficient_credits", "key_reused", "too_large"),
    },
    response_model=Drawing | DrawingPrice,
)
def draw(
    services: ServicesDep,
    caller: TrainerDep,
    job_id: TrainingId,
    body: DrawRequest,
    response: Response,
    dry_run: Annotated[bool, Query(alias="dryRun", description="Only return the price.")] = False,
    key: IdempotencyKey = None,
) -> Drawing | DrawingPrice:
    arguments = body.model_dump() | {"owner_id": caller.owner_id, "job_id": job_id}
    if dry_run:
        response.status_code = 200
        return price_of(service.price(services, arguments))
    view = service.submit(services, arguments | {"idempotency_key": api_key(key)})
    response.headers["Location"] = f"/api/drawings/{view.drawing_id}"
    return drawing_of(view)


@router.get("/trainings/{id}/drawings", summary="List the drawings of a training", responses=responses(*_ONE))
def drawings(
    services: ServicesDep,
    caller: ReaderDep,
    job_id: TrainingId,
    limit: Annotated[int, Query(ge=1, le=100, description="How many drawings to return.")] = 20,
) -> Drawings:
    found = service.of_training(services, job_id, caller.owner_id, limit)
    return Drawings(drawings=[drawing_of(view) for view in found])


@router.get("/drawings/{drawingId}", summary="Get the state of a drawing", responses=responses(*_ONE))
def drawing(services: ServicesDep, caller: ReaderDep, drawing_id: DrawingId) -> Drawing:
    return drawing_of(service.get(services, drawing_id, caller.owner_id))


@router.post(
    "/drawings/{drawingId}/cancel",
    summary="Cancel a drawing",
    description="The steps done are charged and the other credits are released. Images that are drawn are kept. "
    "Cancelling again changes nothing.",
    responses=responses(*_ONE, "illegal_move"),
)
def cancel(services: ServicesDep, caller: TrainerDep, drawing_id: DrawingId) -> Drawing:
    return drawing_of(service.cancel(services, drawing_id, caller.owner_id))


@router.get(
    "/drawings/{drawingId}/images/{number}",
    summary="Get an image of a drawing",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}, **responses(*_ONE)},
)
def image(services: ServicesDep, caller: ReaderDep, drawing_id: DrawingId, number: DrawnNumber) -> Response:
    return picture_response(service.picture(services, drawing_id, number, caller.owner_id), "drawn.png")
