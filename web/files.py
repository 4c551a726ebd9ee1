"""Answers that are files: the finished LoRA, by an address that needs no token, and pictures for a browser's cache."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from fastapi import Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from core.errors import NotFound
from jobs import service
from jobs.services import Services
from web import signing

_MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"}


def download_response(request: Request, services: Services, job_id: str, owner_id: str) -> RedirectResponse:
    """A redirect to the LoRA file of a ready job. Raises as `service.get_lora` does."""
    lora = service.get_lora(services, job_id, owner_id)
    address = services.store.url(lora.key, signing.MAX_AGE_S)
    return RedirectResponse(signing.file_address(request.app.state.secret, job_id, address), 307)


def stored_file(address: str, name: str) -> FileResponse:
    """A file of a store in a folder, for download under `name`. Raises NotFound if this machine does not have it."""
    path = Path(unquote(urlsplit(address).path))
    if urlsplit(address).scheme != "file" or not path.is_file():
        raise NotFound("this service does not have the file")
    return FileResponse(path, media_type="application/octet-stream", filename=name)


def picture_response(data: bytes, name: str) -> Response:
    """A picture, of the kind that the end of its name says."""
    media_type = _MEDIA_TYPES[name.rpartition(".")[2]]
    return Response(data, media_type=media_type, headers={"Cache-Control": "private, max-age=3600"})
