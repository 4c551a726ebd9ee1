"""One training: `/api/trainings/{id}`."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse, StreamingResponse

from jobs import checkpoints as job_checkpoints
from jobs import history, service
from jobs import previews as job_previews
from jobs.captioning import review
from jobs.results import delivery, lora_files, model_card
from training.lora.formats import FORMATS
from web import signing
from web.auth import ReaderDep, ServicesDep, TrainerDep
from web.files import card_response, download_response, lora_response, picture_response
from web.models.trainings import Checkpoint, Checkpoints, Preview, Previews, Review, ReviewAccepted, Training
from web.parameters import IdempotencyKey, PreviewName, TrainingId, api_key
from web.problems import ALWAYS, RequestRefused, responses
from web.streams import event_response

router = APIRouter(prefix="/api/trainings/{id}", tags=["trainings"])

_ONE = (*ALWAYS, "not_found")
Step = Annotated[int, Path(ge=1, le=100_000)]
Form = Annotated[
    str | None,
    Query(
        max_length=20, pattern=f"^({'|'.join(FORMATS)})$",
        description=f"The form of the file: {', '.join(f'`{form}`' for form in FORMATS)}. Default: the one that the "
        "training has written, which most programs read. A form that the family does not have is a fault.",
    ),
]  # fmt: skip
_EVENT = {
    "type": "object",
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": {"type": "string"},
    },
}


@router.get("", summary="Get the state of a training", responses=responses(*_ONE))
def training(services: ServicesDep, caller: ReaderDep, job_id: TrainingId) -> Training:
    return Training.model_validate(service.get(services, job_id, caller.owner_id))


@router.post(
    "/cancel",
    summary="Cancel a training",
    description="The steps done are charged and the other credits are released. Cancelling again changes nothing.",
    responses=responses(*_ONE, "illegal_move"),
)
def cancel(services: ServicesDep, caller: TrainerDep, job_id: TrainingId) -> Training:
    return Training.model_validate(service.cancel(services, job_id, caller.owner_id))


@router.post(
    "/retry",
    status_code=202,
    summary="Start a new training with the pictures and recipe of one that ended",
    responses={
        202: {"headers": {"Location": {"description": "The new training.", "schema": {"type": "string"}}}},
        **responses(*_ONE, "illegal_move", "insufficient_credits", "key_reused"),
    },
)
def retry(
    services: ServicesDep, caller: TrainerDep, job_id: TrainingId, response: Response, key: IdempotencyKey = None
) -> Training:
    view = service.retry(services, job_id, caller.owner_id, api_key(key))
    response.headers["Location"] = f"/api/trainings/{view.job_id}"
    return Training.model_validate(view)


# ---- the review of captions ----------------------------------------------------------------------------------


@router.get(
    "/review",
    summary="Get the captions that a training waits with",
    description="Only while its stage is `review`. Change the captions of stored pictures under "
    "`/api/influencer/{id}/captions`, as often as you like.",
    responses=responses(*_ONE, "illegal_move"),
)
def captions_to_review(services: ServicesDep, caller: ReaderDep, job_id: TrainingId) -> Review:
    return Review.model_validate(review.get(services, job_id, caller.owner_id))


@router.post(
    "/review",
    summary="Accept the captions of a training",
    description="It trains with the captions that its pictures have now. Accepting again changes nothing.",
    responses=responses(*_ONE, "illegal_move", "too_large"),
)
def accept_captions(services: ServicesDep, caller: TrainerDep, job_id: TrainingId, body: ReviewAccepted) -> Training:
    return Training.model_validate(review.accept(services, job_id, caller.owner_id, body.captions))


# ---- events ---------------------------------------------------------------------------------------------------


@router.get(
    "/events",
    summary="Follow a training as server-sent events",
    description="The events are `queued`, `admitted`, `status`, `stage`, `progress`, `retry` and `preview`, each with "
    "a number as its id. A client that reconnects with `Last-Event-ID` misses none. The stream ends after the final "
    "status; after that the answer is 204, which tells a browser not to reconnect.",
    response_class=StreamingResponse,  # FastAPI's EventSourceResponse runs a generator and three tasks for each stream
    responses={
        200: {"content": {"text/event-stream": {"schema": _EVENT}}},
        204: {"description": "The training has ended, and the client has received all its events."},
        **responses(*_ONE),
    },
)
async def events(
    request: Request,
    services: ServicesDep,
    caller: ReaderDep,
    job_id: TrainingId,
    last_event_id: Annotated[
        int | None, Header(alias="Last-Event-ID", ge=0, le=2**63 - 1, description="Continue after this event.")
    ] = None,
) -> Response:
    return await event_response(request, services, job_id, caller, last_event_id or 0)


@router.get(
    "/log", summary="Get the log of a training as text", response_class=PlainTextResponse, responses=responses(*_ONE)
)
def log(services: ServicesDep, caller: ReaderDep, job_id: TrainingId) -> str:
    events = service.events(services, job_id, owner_id=caller.owner_id)
    return "".join(f"{line}\n" for line in history.describe(events))


# ---- checkpoints ---------------------------------------------------------------------------------------------


@router.get("/checkpoints", summary="List the checkpoints that a training keeps", responses=responses(*_ONE))
def checkpoints(services: ServicesDep, caller: ReaderDep, job_id: TrainingId) -> Checkpoints:
    found = job_checkpoints.kept(services, job_id, caller.owner_id)
    here = f"/api/trainings/{job_id}/checkpoints"
    return Checkpoints(
        checkpoints=[
            Checkpoint(step=one.step, sha256=one.sha256, bytes=one.bytes, url=f"{here}/{one.step}") for one in found
        ]
    )


@router.get(
    "/checkpoints/{step}",
    summary="Download the LoRA file of a checkpoint",
    description="If the object store is S3, redirects to an address there that is valid for 15 minutes.",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        307: {"headers": {"Location": {"description": "The file.", "schema": {"type": "string"}}}},
        **responses(*_ONE),
    },
)
def checkpoint(services: ServicesDep, caller: ReaderDep, job_id: TrainingId, step: Step) -> Response:
    return lora_response(
        services, lora_files.find(services, job_id, caller.owner_id, step=step), f"{job_id}-{step}.safetensors"
    )


@router.post(
    "/checkpoints/{step}/deliver",
    summary="Deliver the LoRA of a kept checkpoint instead of the last one",
    description="From then on, downloads and drawings use the LoRA of this checkpoint. The LoRA of the last step is "
    "kept among the checkpoints, so it can be delivered again. Only for a training that is ready.",
    responses=responses(*_ONE, "illegal_move"),
)
def deliver(services: ServicesDep, caller: TrainerDep, job_id: TrainingId, step: Step) -> Training:
    return Training.model_validate(delivery.deliver(services, job_id, step, caller.owner_id))


# ---- results ------------------------------------------------------------------------------------------------


@router.get("/previews", summary="List the pictures that were drawn during a training", responses=responses(*_ONE))
def previews(services: ServicesDep, caller: ReaderDep, job_id: TrainingId) -> Previews:
    names = job_previews.names(services, job_id, caller.owner_id)
    return Previews(previews=[Preview(name=name, url=f"/api/trainings/{job_id}/previews/{name}") for name in names])


@router.get(
    "/previews/{name}",
    summary="Get a picture that was drawn during a training",
    response_class=Response,
    responses={200: {"content": {"image/png": {}, "image/jpeg": {}, "image/webp": {}}}, **responses(*_ONE)},
)
def preview(services: ServicesDep, caller: ReaderDep, job_id: TrainingId, name: PreviewName) -> Response:
    return picture_response(job_previews.get(services, job_id, name, caller.owner_id), name)


@router.get(
    "/download",
    status_code=307,
    summary="Download the finished file",
    description="Redirects to an address that is valid for 15 minutes and needs no token: in the object store if that "
    "is S3, else in this service.",
    response_class=RedirectResponse,
    responses={
        307: {"headers": {"Location": {"description": "The file.", "schema": {"type": "string"}}}},
        **responses(*_ONE, "illegal_move"),
    },
)
def download(
    request: Request, services: ServicesDep, caller: ReaderDep, job_id: TrainingId, form: Form = None
) -> RedirectResponse:
    return download_response(request, services, job_id, caller.owner_id, form)


@router.get(
    "/card",
    summary="Get the model card of the finished file",
    description="Markdown with the fields that Hugging Face reads: trigger word, prompts, pictures, recipe, base model "
    "and licence.",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/markdown": {}}}, **responses(*_ONE, "illegal_move")},
)
def card(services: ServicesDep, caller: ReaderDep, job_id: TrainingId) -> Response:
    return card_response(*model_card.build(services, job_id, caller.owner_id))


@router.get(
    "/file",
    summary="Get the finished file from a signed address",
    description="`download` redirects to such an address. It needs no token and is valid for 15 minutes.",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        **responses("forbidden", "not_found", "spec_invalid"),
    },
)
def file(
    request: Request,
    services: ServicesDep,
    job_id: TrainingId,
    expires: Annotated[int, Query(ge=0, le=2**53)],
    signature: Annotated[str, Query(min_length=64, max_length=64, pattern=r"^[0-9a-f]+$")],
    form: Form = None,
) -> Response:
    if not signing.is_signed(request.app.state.secret, job_id, expires, signature):
        raise RequestRefused(
            "forbidden", "the signature of this address is wrong or has expired; get a new address from `download`"
        )
    found = lora_files.find(services, job_id, form=form)
    return lora_response(services, found, f"{job_id}{f'-{found.form}' if found.form else ''}.safetensors")
