"""Pictures that come with a request: files of a form, stored at once, or addresses, which a worker fetches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import PurePath
from typing import Literal

import anyio
from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from core.errors import FailureCode, IllegalMove, ImageInvalid, ImprintError, SpecInvalid
from core.picture_names import plain_name
from core.settings import Settings
from jobs.services import Services
from jobs.subjects import image_fetches, picture_uploads, subject_pictures
from jobs.subjects.image_fetches import FetchProgress
from web.auth import Caller
from web.models.pictures import ImageAddresses, RefusedImage, StoredImages, image_of
from web.partial_files import FileOfPieces, PartialFiles
from web.problems import RequestRefused
from web.server.limits import OpenLimit

# By its number and its name, as the client counts; by its name; or not at all, where the client shows the name.
Naming = Literal["number", "name", "none"]
MAX_FILES = 20  # of one request; an archive counts as one
_MAX_UNPACKING = 2  # archives that are unpacked at the same time
MAX_BODY_BYTES = 256 * 1024  # of a request without files
_TOO_MANY = f"send at most {MAX_FILES} at a time, and the others in further requests"
_FORM_OVERHEAD_BYTES = 1_000_000  # what multipart puts around the files


def max_upload_bytes(settings: Settings) -> int:
    """The largest upload: five of the largest pictures, or more that are smaller."""
    return 5 * settings.max_picture_bytes + _FORM_OVERHEAD_BYTES


class Uploads:
    """The limits of uploads on this process, and the threads that store their pictures."""

    def __init__(self, settings: Settings) -> None:
        self.max_file_bytes = max_upload_bytes(settings)
        self._count = OpenLimit("uploads", settings.uploads_per_caller, settings.uploads_max)
        # One upload of the largest size must be possible, whatever the setting.
        in_all = max(settings.upload_bytes_max, self.max_file_bytes)
        self._bytes = OpenLimit("bytes of uploads", max(in_all // 2, self.max_file_bytes), in_all)
        self.partial_files = PartialFiles(settings, in_all)
        # Not the pool of the handlers. A picture takes seconds, and each upload asks for its next one in turn.
        self.threads = anyio.CapacityLimiter(settings.io_concurrency)
        # Each archive may need twice the space of the largest upload in the temporary folder.
        self.max_unpacked_bytes = 2 * self.max_file_bytes
        self.unpacking = anyio.CapacityLimiter(_MAX_UNPACKING)

    @contextmanager
    def hold(self, request: Request, caller: Caller) -> Iterator[None]:
        """Hold the place of an upload while the block receives and stores it. Raises RequestRefused."""
        length = request.headers.get("content-length", "")
        size = int(length[:20]) if length.isdigit() else self.max_file_bytes
        with self._count.hold(caller.key), self._bytes.hold(caller.key, size):
            yield


async def store_uploads(
    request: Request,
    services: Services,
    caller: Caller,
    subject_id: str,
    *,
    is_mask: bool = False,
    name: str | None = None,
    naming: Naming = "number",
) -> StoredImages:
    """Store the files of a form. Raises RequestRefused, SpecInvalid or RequestValidationError.

    Once the client has gone, no further file is stored. `name`: store the first file under this name, and no other.
    `naming`: how refusals name the files.
    """
    uploads: Uploads = request.app.state.uploads
    with uploads.hold(request, caller):
        try:
            async with request.form(max_files=MAX_FILES, max_fields=10, max_part_size=10_000) as form:
                files = [part for name, part in form.multi_items() if name == "files" and isinstance(part, UploadFile)]
                if not files:
                    raise SpecInvalid.of({"files": "the form contains no files"})
                if name is not None:
                    files[0].filename = name
                    del files[1:]
                return await _store(request, services, caller.owner_id, subject_id, files, is_mask, naming)
        except HTTPException as error:
            if error.detail.startswith("Too many files"):
                raise RequestRefused("bad_request", _TOO_MANY, faults={"files": _TOO_MANY}) from None
            raise


async def store_piece(
    request: Request, services: Services, caller: Caller, subject_id: str, file: FileOfPieces, offset: int
) -> StoredImages | int:
    """Add a piece to a file; returns how much of it there is, or what was stored once it is whole.

    Raises RequestRefused and SpecInvalid as `store_uploads` does.
    """
    uploads: Uploads = request.app.state.uploads
    if file.size > uploads.max_file_bytes:
        raise RequestRefused("too_large", f"a file may have at most {uploads.max_file_bytes} bytes")
    partial_files, whose = uploads.partial_files, caller.key
    with uploads.hold(request, caller):
        piece = await request.body()
        whole = await run_sync(partial_files.append, whose, file, offset, piece, limiter=uploads.threads)
        if isinstance(whole, int):
            return whole
        try:
            with whole:
                part = UploadFile(whole, filename=file.name)
                stored = await _store(request, services, caller.owner_id, subject_id, [part], False, "none")
        except (RequestRefused, ImprintError):
            partial_files.delete(whose, file)
            raise
        partial_files.delete(whose, file)
        return stored


async def fetch_addresses(
    request: Request, services: Services, caller: Caller, subject_id: str, *, is_mask: bool = False
) -> FetchProgress:
    """Have a worker fetch the pictures at the addresses of the body.

    Raises RequestRefused, SpecInvalid, TooManyRequests or RequestValidationError.
    """
    addresses = _addresses(await request.body())
    progress = await run_in_threadpool(
        image_fetches.submit, services, caller.owner_id, subject_id, addresses, is_mask=is_mask
    )
    if not progress.fetch_id:
        raise _none_stored(
            [RefusedImage(index=one.index, code=one.code, detail=one.detail) for one in progress.refused]
        )
    return progress


def is_form(request: Request) -> bool:
    """Whether the pictures of a request come as files of a form, or else as addresses. Raises RequestRefused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/json"):
        raise RequestRefused("unsupported_media_type", "send pictures as multipart/form-data or application/json")
    return kind == "multipart/form-data"


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


async def _store(
    request: Request, services: Services, owner_id: str, subject_id: str, files: Sequence[UploadFile], is_mask: bool,
    naming: Naming,
) -> StoredImages:  # fmt: skip
    """Store the pictures of the files and archives, and use the captions beside them."""
    limits: Uploads = request.app.state.uploads
    given = [picture_uploads.UploadedFile(file.filename, file.file, _label(file.filename, naming)) for file in files]
    opened = picture_uploads.opened(given, services.settings, limits.max_unpacked_bytes)
    upload = await run_sync(opened.__enter__, limiter=limits.unpacking)
    try:
        stored: dict[str, picture_uploads.UploadPart] = {}
        for part in upload.parts:
            if await request.is_disconnected():
                break
            add = partial(picture_uploads.store, services, owner_id, subject_id, part, is_mask=is_mask)
            try:
                stored.setdefault(await run_sync(add, limiter=limits.threads), part)
            except (ImageInvalid, IllegalMove) as error:
                if isinstance(error, IllegalMove) and not stored:
                    raise
                detail = picture_uploads.about(part.label, error.message)
                upload.refused.append(picture_uploads.Refusal(part.index, str(error.code), detail))
    finally:
        await run_sync(opened.__exit__, None, None, None)
    captioned = {} if is_mask else stored
    if naming == "name" and (stored or upload.captions):  # a form without script: its next page lists the notes
        upload.notes += [one.detail for one in upload.refused]
    notes = await run_in_threadpool(picture_uploads.finish, services, owner_id, subject_id, upload, captioned)
    refused = [RefusedImage(index=one.index, code=one.code, detail=one.detail) for one in upload.refused]
    if not stored and not (upload.captions and not refused):
        raise _none_stored(refused, notes)
    get_views = subject_pictures.list_masks if is_mask else subject_pictures.get_all
    views = await run_in_threadpool(get_views, services, owner_id, subject_id, list(stored))
    by_id = {view.id: view for view in views}
    images = [image_of(subject_id, by_id[picture_id]) for picture_id in stored if picture_id in by_id]
    return StoredImages(images=images, refused=refused, notes=notes)


def _label(name: str | None, naming: Naming) -> str | None:
    """How messages name a file, as in `UploadedFile`."""
    return "" if naming == "none" else (plain_name(PurePath(name or "").name) if naming == "name" else None)


def _none_stored(refused: Sequence[RefusedImage], notes: Sequence[str] = ()) -> RequestRefused:
    is_unreachable = refused and all(one.code != FailureCode.IMAGE_INVALID for one in refused)
    faults: dict[str, str] = {}
    for one in refused:  # several may be from one archive
        faults[str(one.index)] = "; ".join(filter(None, (faults.get(str(one.index)), one.detail)))
    faults |= {"files": "; ".join(notes)} if notes else {}
    code = "image_unreachable" if is_unreachable else "image_invalid"
    return RequestRefused(code, "none of the pictures was stored", faults=faults)
