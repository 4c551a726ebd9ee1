"""Pictures that come with a request: files of a form, or addresses to fetch."""

from collections.abc import Callable, Iterable

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from core.errors import FailureCode, ImageInvalid, ImageUnreachable, SpecInvalid
from core.picture_names import picture_label, plain_name, source_name
from core.settings import Settings
from jobs.services import Services
from jobs.subjects import subject_pictures
from web.models.pictures import ImageAddresses, RefusedImage, StoredImages, image_of
from web.problems import RequestRefused

MAX_FILES = 20  # of one request
_TOO_MANY = f"send at most {MAX_FILES} at a time, and the others in further requests"
_FORM_OVERHEAD_BYTES = 1_000_000  # what multipart puts around the files
Loader = Callable[[], bytes]


def max_body_bytes(settings: Settings) -> int:
    """The largest upload: five of the largest pictures, or more that are smaller."""
    return 5 * settings.max_picture_bytes + _FORM_OVERHEAD_BYTES


async def store_uploads(
    request: Request, services: Services, owner_id: str, subject_id: str, *, is_mask: bool = False
) -> StoredImages:
    """Store the pictures of a request. Raises RequestRefused, SpecInvalid or RequestValidationError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        try:
            async with request.form(max_files=MAX_FILES, max_fields=10, max_part_size=10_000) as form:
                files = [part for name, part in form.multi_items() if name == "files" and isinstance(part, UploadFile)]
                loaders = [(file.filename, _from_file(file, services.settings.max_picture_bytes)) for file in files]
                return await run_in_threadpool(_store, services, owner_id, subject_id, loaders, is_mask)
        except HTTPException as error:
            if error.detail.startswith("Too many files"):
                raise RequestRefused("bad_request", _TOO_MANY, faults={"files": _TOO_MANY}) from None
            raise
    if kind == "application/json":
        addresses = _addresses(await request.body())
        loaders = [(source_name(address), _from_address(services, address)) for address in addresses]
        return await run_in_threadpool(_store, services, owner_id, subject_id, loaders, is_mask)
    raise RequestRefused("unsupported_media_type", "send pictures as multipart/form-data or application/json")


def _from_file(file: UploadFile, limit: int) -> Loader:
    def load() -> bytes:
        data = file.file.read(limit + 1)
        if len(data) > limit:
            raise ImageInvalid(f"the file is larger than {limit} bytes")
        return data

    return load


def _from_address(services: Services, address: str) -> Loader:
    return lambda: services.sources.fetch(address, max_bytes=services.settings.max_picture_bytes)


def _addresses(body: bytes) -> list[str]:
    try:
        request = ImageAddresses.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        if any(fault["type"] == "too_long" for fault in faults):
            raise SpecInvalid.of({"urls": _TOO_MANY}) from None
        raise RequestValidationError(faults) from None
    addresses = [*([request.url] if request.url else []), *(request.urls or [])]
    if not addresses:
        raise SpecInvalid.of({"urls": "give at least one address"})
    return addresses


def _store(
    services: Services, owner_id: str, subject_id: str, loaders: Iterable[tuple[str | None, Loader]], is_mask: bool
) -> StoredImages:
    """Store what the loaders give, each with the name of its source."""
    stored, refused = [], []
    for index, (name, load) in enumerate(loaders):
        try:
            stored.append(subject_pictures.add(services, owner_id, subject_id, load(), is_mask=is_mask, name=name))
        except (ImageInvalid, ImageUnreachable) as error:
            detail = f"{picture_label(index, plain_name(name))}: {error.message}"
            refused.append(RefusedImage(index=index, code=error.code, detail=detail))
    if not stored and not refused:
        raise SpecInvalid.of({"files": "the form contains no files"})
    if not stored:
        raise _none_stored(refused)
    views = (subject_pictures.list_masks if is_mask else subject_pictures.list_pictures)(services, owner_id, subject_id)
    by_id = {view.id: view for view in views}
    images = [image_of(subject_id, by_id[picture_id]) for picture_id in dict.fromkeys(stored) if picture_id in by_id]
    return StoredImages(images=images, refused=refused)


def _none_stored(refused: list[RefusedImage]) -> RequestRefused:
    is_invalid = any(one.code == FailureCode.IMAGE_INVALID for one in refused)
    faults = {f"{one.index}": one.detail for one in refused}
    code = "image_invalid" if is_invalid else "image_unreachable"
    return RequestRefused(code, "none of the pictures was stored", faults=faults)
