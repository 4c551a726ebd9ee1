"""One training: `/api/trainings/{id}`."""

import re
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated
from urllib.parse import unquote, urlsplit

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse, StreamingResponse

from core.errors import IllegalMove, NotFound
from jobs import history, keys, service
from jobs.services import Services
from jobs.view import View
from storage.tables import ACTIVE, Status
from web import signing
from web.auth import ReaderDep, ServicesDep, TrainerDep
from web.models.trainings import Preview, Previews, Training, training_of
from web.problems import RequestRefused, responses
from web.routes.subjects import ALWAYS
from web.streams import Streams, encoded

router = APIRouter(prefix="/api/trainings/{id}", tags=["trainings"])

TrainingId = Annotated[str, Path(alias="id", min_length=1, max_length=100, pattern=r"^[a-z0-9_]+$")]
_ONE = (*ALWAYS, "not_found")
_EVENT = {
    "type": "object",
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": {"type": "string"},
    },
}
_PREVIEW = re.compile(r"([0-9]+)-([0-9a-z_]+)\.(png|jpg|jpeg|webp)")
_KINDS = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"}


@router.get("", summary="Where a training stands", responses=responses(*_ONE))
def training(services: ServicesDep, caller: ReaderDep, job_id: TrainingId) -> Training:
    return training_of(service.look(services, job_id, caller.owner_id))


@router.post(
    "/cancel",
    summary="Cancel a training",
    description="Steps that were done are charged, the rest of the credits comes back. Again changes nothing.",
    responses=responses(*_ONE, "illegal_move"),
)
def cancel(request: Request, services: ServicesDep, caller: TrainerDep, job_id: TrainingId) -> Training:
    service.look(services, job_id, caller.owner_id)
    view = service.cancel(services, job_id)
    request.app.state.courier.ask()
    return training_of(view)


@router.post(
    "/retry",
    status_code=202,
    summary="Train again what ended, as a new training",
    responses={
        202: {"headers": {"Location": {"description": "The new training.", "schema": {"type": "string"}}}},
        **responses(*_ONE, "illegal_move", "insufficient_credits"),
    },
)
def retry(
    request: Request, services: ServicesDep, caller: TrainerDep, job_id: TrainingId, response: Response
) -> Training:
    service.look(services, job_id, caller.owner_id)
    view = service.retry(services, job_id)
    request.app.state.courier.ask()
    response.headers["Location"] = f"/api/trainings/{view['job_id']}"
    return training_of(view)


# ---- what happens ---------------------------------------------------------------------------------------------


@router.get(
    "/events",
    summary="What happens, as server-sent events",
    description="Events `status`, `stage`, `progress`, `retry` and `preview`, each with a number as its id. Who comes "
    "back with `Last-Event-ID` misses none. The stream ends after the final status; after that the answer is 204, "
    "which tells a browser not to come again.",
    response_class=StreamingResponse,  # FastAPI's EventSourceResponse runs a generator and three tasks for each stream
    responses={
        200: {"content": {"text/event-stream": {"schema": _EVENT}}},
        204: {"description": "The training is final, and the client has had all its events."},
        **responses(*_ONE),
    },
)
async def events(
    request: Request,
    services: ServicesDep,
    caller: ReaderDep,
    job_id: TrainingId,
    last_event_id: Annotated[
        int | None, Header(alias="Last-Event-ID", ge=0, le=2**63 - 1, description="Go on behind this event.")
    ] = None,
) -> Response:
    streams: Streams = request.app.state.streams
    active, newest = await run_in_threadpool(_place, services, job_id, caller.owner_id)
    after = min(last_event_id or 0, newest)  # a number that we never gave must not make somebody wait for ever
    if not active and after == newest:
        return Response(status_code=204)
    stream = streams.follow(job_id, after) if active else _past(services, job_id, after)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _place(services: Services, job_id: str, owner_id: str) -> tuple[bool, int]:
    """Whether more may happen, and the number of an event so new that the last one is none before it."""
    newest = history.newest_event(services, job_id)
    if service.look(services, job_id, owner_id)["status"] in ACTIVE:
        return True, newest  # the last event comes after the look, so behind this one
    return False, history.newest_event(services, job_id)


async def _past(services: Services, job_id: str, after: int) -> AsyncIterator[bytes]:
    while found := await run_in_threadpool(history.events_of, services, {job_id: after}):
        for event in found:
            after = event.id or after
            yield encoded(event)


@router.get(
    "/log", summary="What happened, in lines for people", response_class=PlainTextResponse, responses=responses(*_ONE)
)
def log(services: ServicesDep, caller: ReaderDep, job_id: TrainingId) -> str:
    service.look(services, job_id, caller.owner_id)
    return "".join(f"{line}\n" for line in history.lines(service.events(services, job_id)))


# ---- what comes of it -----------------------------------------------------------------------------------------


@router.get("/previews", summary="Pictures that were made on the way", responses=responses(*_ONE))
def previews(services: ServicesDep, caller: ReaderDep, job_id: TrainingId) -> Previews:
    service.look(services, job_id, caller.owner_id)
    prefix = keys.previews(job_id)
    names = [key.removeprefix(prefix).replace("/", "-") for key in services.store.list(prefix)]
    named = [name for name in names if _PREVIEW.fullmatch(name)]
    return Previews(previews=[Preview(name=name, url=f"/api/trainings/{job_id}/previews/{name}") for name in named])


@router.get(
    "/previews/{name}",
    summary="One picture that was made on the way",
    response_class=Response,
    responses={200: {"content": {"image/png": {}, "image/jpeg": {}, "image/webp": {}}}, **responses(*_ONE)},
)
def preview(
    services: ServicesDep, caller: ReaderDep, job_id: TrainingId, name: Annotated[str, Path(max_length=100)]
) -> Response:
    service.look(services, job_id, caller.owner_id)
    found = _PREVIEW.fullmatch(name)
    if found is None:
        raise NotFound("there is no such preview")
    data = services.store.get(f"{keys.previews(job_id)}{found[1]}/{found[2]}.{found[3]}")
    return Response(data, media_type=_KINDS[found[3]], headers={"Cache-Control": "private, max-age=3600"})


@router.get(
    "/download",
    status_code=307,
    summary="The finished file",
    description="Leads to an address that is good for 15 minutes and needs no token: of the object store where that "
    "is S3, else of this service.",
    response_class=RedirectResponse,
    responses={
        307: {"headers": {"Location": {"description": "The file.", "schema": {"type": "string"}}}},
        **responses(*_ONE, "illegal_move"),
    },
)
def download(request: Request, services: ServicesDep, caller: ReaderDep, job_id: TrainingId) -> RedirectResponse:
    view = _ready(service.look(services, job_id, caller.owner_id))
    address = services.store.url(view["lora"]["key"], signing.MOST_S)
    return RedirectResponse(signing.file_address(request.app.state.secret, job_id, address), 307)


@router.get(
    "/file",
    summary="The finished file, by a signed address",
    description="`download` gives such addresses. They need no token and are good for 15 minutes.",
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
) -> FileResponse:
    if not signing.is_signed(request.app.state.secret, job_id, expires, signature):
        raise RequestRefused("forbidden", "this address is not signed by us, or its time is over; ask for a new one")
    address = services.store.url(_ready(service.look(services, job_id))["lora"]["key"], signing.MOST_S)
    path = FilePath(unquote(urlsplit(address).path))
    if urlsplit(address).scheme != "file" or not path.is_file():
        raise NotFound("the file is not here")
    return FileResponse(path, media_type="application/octet-stream", filename=f"{job_id}.safetensors")


def _ready(view: View) -> View:
    if view["status"] != Status.READY or not view["lora"]:
        raise IllegalMove(f"this training is {view['status']}: there is no file")
    return view
