"""A subject's pictures: `/api/influencer/{id}/images`."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from core.errors import FailureCode, ImageInvalid, ImageUnreachable, SpecInvalid
from core.settings import Settings
from jobs.services import Services
from jobs.subjects import subject_pictures
from web.auth import ReaderDep, ServicesDep, TrainerDep
from web.models.pictures import Fault, Image, ImageAddresses, ImageChange, Images, RefusedImage, StoredImages
from web.problems import RequestRefused, responses
from web.routes.subjects import ALWAYS, SubjectId

router = APIRouter(prefix="/api/influencer/{id}", tags=["images"])

MOST_FILES = 20  # of one request
_ROOM_BYTES = 1_000_000  # for what multipart has around the files
PictureId = Annotated[str, Path(alias="imageId", min_length=1, max_length=100, pattern=r"^[a-z0-9_]+$")]
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
                            "maxItems": MOST_FILES,
                        }
                    },
                }
            },
            "application/json": {
                "schema": ImageAddresses.model_json_schema(),  # its body is read by hand, so it is in no component
                "example": {"urls": ["https://pictures.example/rex1.jpg"]},
            },
        },
    }
}


def max_body_bytes(settings: Settings) -> int:
    """The largest upload: five of the largest pictures, or more that are smaller."""
    return 5 * settings.max_picture_bytes + _ROOM_BYTES


@router.post(
    "/images",
    status_code=201,
    summary="Store pictures: files of a form, or addresses to fetch",
    description="What is no picture is left out and named in `refused`; if nothing is left, the answer is 422. Each "
    "picture gets a verdict at once. The same picture again gives the same id. With `masks=true` they are masks, for "
    "trainings to name beside pictures: not among the subject's pictures, and judged good if they can be read.",
    openapi_extra=_BODY,
    responses=responses(
        *ALWAYS, "too_large", "unsupported_media_type", "image_invalid", "image_unreachable", "illegal_move"
    ),
)
async def add_images(
    request: Request,
    services: ServicesDep,
    caller: TrainerDep,
    subject_id: SubjectId,
    masks: Annotated[bool, Query(description="What is stored are masks: they are not among the pictures.")] = False,
) -> StoredImages:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=MOST_FILES, max_fields=10, max_part_size=10_000) as form:
            files = [part for name, part in form.multi_items() if name == "files" and isinstance(part, UploadFile)]
            readers = [_reader(file, services.settings.max_picture_bytes) for file in files]
            return await run_in_threadpool(_store, services, caller.owner_id, subject_id, readers, masks)
    if kind == "application/json":
        addresses = _addresses(await request.body())
        readers = [_fetcher(services, address) for address in addresses]
        return await run_in_threadpool(_store, services, caller.owner_id, subject_id, readers, masks)
    raise RequestRefused("unsupported_media_type", "pictures come as multipart/form-data or application/json")


Read = Callable[[], bytes]


def _reader(file: UploadFile, limit: int) -> Read:
    def read() -> bytes:
        data = file.file.read(limit + 1)
        if len(data) > limit:
            raise ImageInvalid(f"the file has more than {limit} bytes")
        return data

    return read


def _fetcher(services: Services, address: str) -> Read:
    return lambda: services.sources.fetch(address, max_bytes=services.settings.max_picture_bytes)


def _addresses(body: bytes) -> list[str]:
    try:
        read = ImageAddresses.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from None
    addresses = [*([read.url] if read.url else []), *(read.urls or [])]
    if not addresses:
        raise SpecInvalid.of({"urls": "name at least one address"})
    return addresses


def _store(services: Services, owner_id: str, subject_id: str, readers: Iterable[Read], masks: bool) -> StoredImages:
    stored, refused = [], []
    for index, read in enumerate(readers):
        try:
            stored.append(subject_pictures.add(services, owner_id, subject_id, read(), is_mask=masks))
        except (ImageInvalid, ImageUnreachable) as error:
            refused.append(RefusedImage(index=index, code=error.code, detail=error.message))
    if not stored and not refused:
        raise SpecInvalid.of({"files": "the form has no files"})
    if not stored:
        raise _nothing(refused)
    kept = (subject_pictures.masks if masks else subject_pictures.shown)(services, owner_id, subject_id)
    by_id = {view["id"]: view for view in kept}
    images = [_image(subject_id, by_id[picture_id]) for picture_id in dict.fromkeys(stored) if picture_id in by_id]
    return StoredImages(images=images, refused=refused)


def _nothing(refused: list[RefusedImage]) -> RequestRefused:
    invalid = any(one.code == FailureCode.IMAGE_INVALID for one in refused)
    faults = {f"{one.index}": one.detail for one in refused}
    return RequestRefused("image_invalid" if invalid else "image_unreachable", "no picture was stored", faults=faults)


@router.get("/lora/available-images", summary="The pictures of a subject, with verdicts", responses=responses(*ALWAYS))
def available_images(services: ServicesDep, caller: ReaderDep, subject_id: SubjectId) -> Images:
    images = [_image(subject_id, view) for view in subject_pictures.shown(services, caller.owner_id, subject_id)]
    return Images(images=images, good=sum(image.verdict != "bad" for image in images))


@router.patch("/images/{imageId}", summary="Caption a picture", responses=responses(*ALWAYS, "not_found", "too_large"))
def caption_image(
    services: ServicesDep, caller: TrainerDep, subject_id: SubjectId, picture_id: PictureId, body: ImageChange
) -> Image:
    return _image(subject_id, subject_pictures.caption(services, caller.owner_id, subject_id, picture_id, body.caption))


@router.delete(
    "/images/{imageId}",
    status_code=204,
    summary="Remove a picture; trainings that use it go on",
    responses=responses(*ALWAYS, "not_found"),
)
def remove_image(services: ServicesDep, caller: TrainerDep, subject_id: SubjectId, picture_id: PictureId) -> None:
    subject_pictures.remove(services, caller.owner_id, subject_id, picture_id)


@router.get(
    "/images/{imageId}/preview",
    summary="A small JPEG of a picture",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, **responses(*ALWAYS, "not_found")},
)
def image_preview(services: ServicesDep, caller: ReaderDep, subject_id: SubjectId, picture_id: PictureId) -> Response:
    data = subject_pictures.preview(services, caller.owner_id, subject_id, picture_id)
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _image(subject_id: str, view: dict[str, Any]) -> Image:
    address = f"/api/influencer/{quote(subject_id, safe='')}/images/{view['id']}/preview"
    faults = [Fault(**fault) for fault in view["faults"]]
    return Image(**{**view, "faults": faults, "preview_url": address if view["has_preview"] else None})
