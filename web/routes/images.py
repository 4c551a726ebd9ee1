"""A subject's pictures: `/api/influencer/{id}/images`."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from jobs.services import Services
from jobs.subjects import captions, crops, image_fetches, subject_notes, subject_pictures, subject_settings
from training.families.registry import BASE_MODELS
from training.spec import TrainSpec
from web.auth import ReaderDep, ServicesDep, TrainerDep
from web.files import picture_response
from web.models.pictures import (
    CropChange,
    Image,
    ImageAddresses,
    ImageChange,
    ImageFetch,
    Images,
    StoredImages,
    image_fetch_of,
    image_of,
)
from web.parameters import FetchId, PictureId, SubjectId
from web.problems import ALWAYS, responses
from web.uploads import MAX_FILES, fetch_addresses, is_form, store_uploads

router = APIRouter(prefix="/api/influencer/{id}", tags=["images"])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "minItems": 1,
                            "maxItems": MAX_FILES,
                        }
                    },
                }
            },
            "application/json": {
                "schema": ImageAddresses.model_json_schema(),  # the handler parses this body
                "example": {"urls": ["https://pictures.example/rex1.jpg"]},
            },
        },
    }
}


@router.post(
    "/images",
    status_code=201,
    response_model=StoredImages,
    summary="Store pictures from files or addresses",
    description="Files are stored at once: the answer is 201. A file may be a ZIP or tar archive of pictures. Caption "
    "files (`rex1.txt` for `rex1.jpg`) give pictures of this and of earlier uploads their captions. `refused` has the "
    "pictures that cannot be used, and `notes` a line for every other file that was not used; if nothing is left, the "
    "answer is 422. Addresses are fetched by a worker: the answer is 202, and `url` (also in `Location`) says how far "
    "it is. Each picture gets a verdict. The same picture gets the same id again. With `masks=true` the files are "
    "masks, which a training names in `maskIds`: they are not listed among the subject's pictures, and every mask that "
    "can be decoded is good.",
    openapi_extra=_BODY,
    responses={
        202: {
            "model": ImageFetch,
            "headers": {
                "Location": {"description": "How far the fetch is.", "schema": {"type": "string"}},
                "Retry-After": {"description": "Seconds until it is worth asking.", "schema": {"type": "string"}},
            },
        },
        **responses(
            *ALWAYS, "too_large", "unsupported_media_type", "image_invalid", "image_unreachable", "illegal_move"
        ),
    },
)
async def add_images(
    request: Request,
    services: ServicesDep,
    caller: TrainerDep,
    subject_id: SubjectId,
    masks: Annotated[bool, Query(description="Store masks instead of pictures.")] = False,
) -> Any:
    if is_form(request):
        return await store_uploads(request, services, caller, subject_id, is_mask=masks)
    fetch = image_fetch_of(subject_id, await fetch_addresses(request, services, caller, subject_id, is_mask=masks))
    headers = {"Location": fetch.url, "Retry-After": "1"}
    return JSONResponse(fetch.model_dump(mode="json", by_alias=True), 202, headers)


@router.get(
    "/images/fetches/{fetchId}",
    summary="Get the pictures of a request that named addresses",
    description="Until `status` is `done`, some addresses are still being fetched. The outcome can be read for a day.",
    responses=responses(*ALWAYS, "not_found"),
)
def image_fetch(services: ServicesDep, caller: ReaderDep, subject_id: SubjectId, fetch_id: FetchId) -> ImageFetch:
    return image_fetch_of(subject_id, image_fetches.get(services, caller.owner_id, subject_id, fetch_id))


_BaseModel = Annotated[
    str | None,
    Query(
        alias="baseModel",
        pattern="^(" + "|".join(map(re.escape, BASE_MODELS)) + ")$",
        description="The base model to judge for. Default: the subject's, or `sd15`.",
    ),
]
_Resolution = Annotated[
    int | None,
    Query(ge=64, le=2048, multiple_of=64, description="The resolution to judge for. Default: the base model's."),
]
_Buckets = Annotated[
    bool | None, Query(alias="aspectBuckets", description="Whether pictures keep shapes near their own.")
]


def _spec(
    services: Services, owner_id: str, subject_id: str, base_model: str | None, resolution: int | None,
    aspect_buckets: bool | None,
) -> TrainSpec:  # fmt: skip
    """The recipe to judge pictures for: what is asked, completed by the subject's settings."""
    usual = subject_pictures.preview_spec(subject_settings.get(services, owner_id, subject_id))
    if base_model is not None and base_model != usual.base_model:
        usual = TrainSpec.model_validate({"base_model": base_model, "trigger_word": "x", "seed": 0})
    asked = {"resolution": resolution, "aspect_buckets": aspect_buckets}
    return usual.model_copy(update={name: value for name, value in asked.items() if value is not None})


@router.get(
    "/lora/available-images",
    summary="List the pictures of a subject with their verdicts",
    description="A picture is measured once, and judged for the base model and resolution that are asked for: one that "
    "is good for `sd15` may be too small for `sdxl`. `seen` is the part of it that such a training sees.",
    responses=responses(*ALWAYS),
)
def available_images(
    services: ServicesDep, caller: ReaderDep, subject_id: SubjectId,
    base_model: _BaseModel = None, resolution: _Resolution = None, aspect_buckets: _Buckets = None,
) -> Images:  # fmt: skip
    spec = _spec(services, caller.owner_id, subject_id, base_model, resolution, aspect_buckets)
    views = subject_pictures.list_pictures(services, caller.owner_id, subject_id, subject_pictures.frame_of(spec))
    images = [image_of(subject_id, view) for view in views]
    notes = subject_notes.get(services, caller.owner_id, subject_id)
    return Images(images=images, notes=notes, good=sum(image.verdict != "bad" for image in images))


@router.delete(
    "/images/notes",
    status_code=204,
    summary="Dismiss the notes on files that were not used",
    responses=responses(*ALWAYS),
)
def dismiss_notes(services: ServicesDep, caller: TrainerDep, subject_id: SubjectId) -> None:
    subject_notes.dismiss(services, caller.owner_id, subject_id)


@router.patch(
    "/images/{imageId}",
    summary="Change the caption of a picture",
    responses=responses(*ALWAYS, "not_found", "too_large"),
)
def caption_image(
    services: ServicesDep, caller: TrainerDep, subject_id: SubjectId, picture_id: PictureId, body: ImageChange
) -> Image:
    captions.set_all(services, caller.owner_id, subject_id, {picture_id: body.caption})
    return image_of(subject_id, subject_pictures.get(services, caller.owner_id, subject_id, picture_id))


@router.delete(
    "/images/{imageId}",
    status_code=204,
    summary="Remove a picture; trainings that use it continue",
    responses=responses(*ALWAYS, "not_found"),
)
def remove_image(services: ServicesDep, caller: TrainerDep, subject_id: SubjectId, picture_id: PictureId) -> None:
    subject_pictures.remove(services, caller.owner_id, subject_id, picture_id)


@router.put(
    "/images/{imageId}/crop",
    summary="Choose the part of a picture to train on",
    description="In pixels of the picture, after rotation. Later trainings see the middle of this part, in the shape "
    "that they train at.",
    responses=responses(*ALWAYS, "not_found", "too_large", "illegal_move"),
)
def set_crop(
    services: ServicesDep, caller: TrainerDep, subject_id: SubjectId, picture_id: PictureId, body: CropChange
) -> Image:
    box = (body.left, body.top, body.width, body.height)
    return image_of(subject_id, crops.set_crop(services, caller.owner_id, subject_id, picture_id, box))


@router.delete(
    "/images/{imageId}/crop",
    summary="Train on the whole picture again",
    responses=responses(*ALWAYS, "not_found", "illegal_move"),
)
def reset_crop(services: ServicesDep, caller: TrainerDep, subject_id: SubjectId, picture_id: PictureId) -> Image:
    return image_of(subject_id, crops.set_crop(services, caller.owner_id, subject_id, picture_id, None))


@router.get(
    "/images/{imageId}/crop",
    summary="Get a small JPEG of the part of a picture that a training sees",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, **responses(*ALWAYS, "not_found", "illegal_move")},
)
def show_crop(
    services: ServicesDep, caller: ReaderDep, subject_id: SubjectId, picture_id: PictureId,
    base_model: _BaseModel = None, resolution: _Resolution = None, aspect_buckets: _Buckets = None,
) -> Response:  # fmt: skip
    spec = _spec(services, caller.owner_id, subject_id, base_model, resolution, aspect_buckets)
    return picture_response(crops.show_crop(services, caller.owner_id, subject_id, picture_id, spec), "crop.jpg")


@router.get(
    "/images/{imageId}/preview",
    summary="Get a small JPEG of a picture",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, **responses(*ALWAYS, "not_found")},
)
def image_preview(services: ServicesDep, caller: ReaderDep, subject_id: SubjectId, picture_id: PictureId) -> Response:
    return picture_response(subject_pictures.preview(services, caller.owner_id, subject_id, picture_id), "preview.jpg")
