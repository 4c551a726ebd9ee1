"""A subject's trainings and settings: `/api/influencer/{id}`."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from core.errors import SpecInvalid
from jobs import service
from jobs.requests import installation, quotes, training_request
from jobs.services import Services
from jobs.subjects import loras, subject_pictures, subject_settings
from web import signing
from web.auth import Caller, ReaderDep, ServicesDep, TrainerDep
from web.models.common import snake_keys
from web.models.subjects import ProfileSet, SubjectChange, SubjectSettings
from web.models.train_request import TrainRequest
from web.models.trainings import Lora, Quoted, Training, Trainings
from web.parameters import IdempotencyKey, SubjectId, api_key
from web.problems import ALWAYS, responses

router = APIRouter(prefix="/api/influencer/{id}", tags=["subjects"])

_WRITES = (*ALWAYS, "too_large")


def request_of(services: Services, caller: Caller, subject_id: str, body: TrainRequest) -> dict[str, Any]:
    """The arguments of `service.submit`: the body, completed by the subject's settings. Raises SpecInvalid."""
    given = {name: getattr(body, name) for name in TrainRequest.model_fields if getattr(body, name) is not None}
    arguments = subject_settings.training_arguments(
        services, caller.owner_id, subject_id, {name: snake_keys(name, value) for name, value in given.items()}
    )
    images, masks = arguments.pop("image_ids", None), arguments.pop("mask_ids", None)
    faults = dict.fromkeys(body.model_extra or {}, "unknown field")
    if isinstance(images, list):
        faults |= {f"images.{index}": "this is not the id of a stored picture" for index in _not_ids(images)}
        if masks is not None and (not isinstance(masks, list) or len(masks) != len(images)):
            faults["mask_ids"] = "give as many masks as pictures, with null for a picture without a mask"
        elif masks is not None:
            odd = [index for index in _not_ids(masks) if masks[index] is not None]
            faults |= {f"images.{index}.mask": "this is not the id of a stored mask" for index in odd}
            images = [_masked(image, mask) for image, mask in zip(images, masks, strict=True)]
        elif subject_settings.is_masked(arguments):
            images = subject_pictures.with_masks(services, caller.owner_id, subject_id, images)
    if reason := _on_end_refusal(services, caller, arguments.get("on_end")):
        faults["on_end"] = reason
    if arguments.get("priority") == "high" and "priority" not in caller.token.scopes:
        faults["priority"] = "high needs a token with the scope priority"
    arguments["images"] = images
    if faults:
        try:
            training_request.parse(arguments, services.settings, services.sources)
        except SpecInvalid as error:
            faults = error.faults | faults
        raise SpecInvalid.of(faults)
    return arguments


def _not_ids(ids: list[Any]) -> list[int]:
    """The positions that do not hold an id."""
    return [
        index
        for index, named in enumerate(ids)
        if not isinstance(named, str) or "://" in named or installation.is_path(named)
    ]


def _on_end_refusal(services: Services, caller: Caller, on_end: Any) -> str | None:
    """Why the token may not name this task. The owner of a token need not be trusted with the application's workers."""
    if not isinstance(on_end, dict) or caller.token.owner_id is None:
        return None  # anything but an object is refused by its type
    if on_end.get("task") in services.settings.on_end_tasks:
        return None
    return "this task is not in IMPRINT_ON_END_TASKS; a service token may name any task"


def _masked(image: Any, mask: Any) -> Any:
    return image if mask is None else {"ref": image, "mask": mask}


@router.post(
    "/lora/train",
    status_code=202,
    summary="Start a training, or get its price and duration",
    description="With `dryRun=true` nothing is started, and the answer is 200 with price and duration.",
    responses={
        200: {"model": Quoted, "description": "Price and duration (`dryRun`)."},
        202: {"headers": {"Location": {"description": "The training.", "schema": {"type": "string"}}}},
        **responses(*_WRITES, "insufficient_credits", "key_reused", "illegal_move", "not_found"),
    },
    response_model=Training | Quoted,
)
def train(
    services: ServicesDep,
    caller: TrainerDep,
    subject_id: SubjectId,
    body: TrainRequest,
    response: Response,
    dry_run: Annotated[bool, Query(alias="dryRun", description="Only return price and duration.")] = False,
    key: IdempotencyKey = None,
) -> Training | Quoted:
    arguments = request_of(services, caller, subject_id, body)
    if dry_run:
        response.status_code = 200
        return Quoted(**asdict(quotes.quote(services, arguments)))
    view = service.submit(services, arguments | {"idempotency_key": api_key(key)})
    if body.trigger_word is None:
        subject_settings.keep_trigger_word(services, caller.owner_id, subject_id, view.spec.trigger_word)
    response.headers["Location"] = f"/api/trainings/{view.job_id}"
    return Training.model_validate(view)


@router.get(
    "/lora/status", summary="Get the latest training of a subject and earlier ones", responses=responses(*ALWAYS)
)
def status(
    services: ServicesDep,
    caller: ReaderDep,
    subject_id: SubjectId,
    limit: Annotated[int, Query(ge=1, le=100, description="How many trainings to return.")] = 20,
) -> Trainings:
    found = service.jobs(services, owner_id=caller.owner_id, subject_id=subject_id, limit=limit)
    latest = service.get(services, found[0].job_id, caller.owner_id) if found else None
    return Trainings.model_validate({"latest": latest, "history": found[1:]})


@router.get(
    "/lora",
    summary="Get the newest finished LoRA of a subject",
    description="With its trigger word, strength, and an address that is valid for 15 minutes. The answer is 404 if no "
    "LoRA is ready; `detail` says why.",
    responses=responses(*ALWAYS, "not_found"),
)
def lora(
    request: Request,
    services: ServicesDep,
    caller: ReaderDep,
    subject_id: SubjectId,
    base_model: Annotated[
        str | None,
        Query(
            alias="baseModel",
            min_length=1,
            max_length=300,
            pattern=r"^[^\x00-\x1f\x7f]+$",
            description="Only a LoRA that was trained on this base model.",
        ),
    ] = None,
) -> Lora:
    found = loras.resolve(services, caller.owner_id, subject_id, base_model)
    url = signing.file_address(request.app.state.secret, found.job_id, found.url)
    return Lora.model_validate(found.model_copy(update={"url": url}))


@router.get("/lora/settings", summary="Get the settings of a subject", responses=responses(*ALWAYS))
def settings(services: ServicesDep, caller: ReaderDep, subject_id: SubjectId) -> SubjectSettings:
    return SubjectSettings.model_validate(subject_settings.get(services, caller.owner_id, subject_id))


@router.patch("/lora/settings", summary="Change the settings of a subject", responses=responses(*_WRITES))
def change_settings(
    services: ServicesDep, caller: TrainerDep, subject_id: SubjectId, body: SubjectChange
) -> SubjectSettings:
    values = body.model_dump(exclude_unset=True)
    if values.get("recipe") is not None:
        values["recipe"] = {name: snake_keys(name, value) for name, value in values["recipe"].items()}
    return SubjectSettings.model_validate(subject_settings.change(services, caller.owner_id, subject_id, values))


@router.post(
    "/profile-set/completed",
    summary="Report that a subject has all its pictures",
    description="Starts a training if the subject trains automatically. If no training starts, the answer and the "
    "subject's webhook say why. Calling it again for the same pictures, or with the same `Idempotency-Key`, does not "
    "start another training.",
    responses=responses(*_WRITES, "key_reused"),
)
def profile_set_completed(
    services: ServicesDep, caller: TrainerDep, subject_id: SubjectId, key: IdempotencyKey = None
) -> ProfileSet:
    done = subject_settings.profile_set_completed(services, caller.owner_id, subject_id, api_key(key))
    return ProfileSet.model_validate(done)
