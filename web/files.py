"""Answers that are files: LoRA files in every form, and pictures for a browser's cache."""

import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fastapi import Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from starlette.background import BackgroundTask

from core.errors import NotFound
from jobs.results import lora_files
from jobs.results.lora_files import Download
from jobs.services import Services
from web import signing

_MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"}


def download_response(
    request: Request, services: Services, job_id: str, owner_id: str, form: str | None = None
) -> RedirectResponse:
    """A redirect to the LoRA file of a ready job, in another form through this service. Raises as `lora_files.find`."""
    found = lora_files.find(services, job_id, owner_id, form=form)
    key: bytes = request.app.state.secret
    if found.form is not None:
        return RedirectResponse(f"{signing.own_address(key, job_id)}&form={found.form}", 307)
    address = services.store.url(found.key, signing.MAX_AGE_S)
    return RedirectResponse(signing.file_address(key, job_id, address), 307)


def lora_response(services: Services, found: Download, name: str | None = None) -> Response:
    """A LoRA file for download under its own name, or under `name`. Raises as `lora_files.write` does."""
    name = name or found.name
    if found.form is not None:
        return _converted(services, found, name)
    address = services.store.url(found.key, signing.MAX_AGE_S, name)
    if urlsplit(address).scheme != "file":
        return RedirectResponse(address, 307)
    return stored_file(address, name)


def _converted(services: Services, found: Download, name: str) -> FileResponse:
    """The file in another form, written to a folder that is deleted once it is sent."""
    folder = Path(tempfile.mkdtemp(prefix="imprint-"))
    try:
        path = folder / "lora.safetensors"
        lora_files.write(services, found, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    done = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    return FileResponse(path, media_type="application/octet-stream", filename=name, background=done)


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


def card_response(name: str, text: str) -> Response:
    """A model card for download."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text, media_type="text/markdown; charset=utf-8", headers=headers)
