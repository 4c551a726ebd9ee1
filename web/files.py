"""Answers that are files: the finished LoRA, by an address that needs no token, and pictures for a browser's cache."""

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from jobs import service
from jobs.services import Services
from web import signing

_MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"}


def download_response(request: Request, services: Services, job_id: str, owner_id: str) -> RedirectResponse:
    """A redirect to the LoRA file of a ready job. Raises as `service.get_lora` does."""
    lora = service.get_lora(services, job_id, owner_id)
    address = services.store.url(lora.key, signing.MAX_AGE_S)
    return RedirectResponse(signing.file_address(request.app.state.secret, job_id, address), 307)


def picture_response(data: bytes, name: str) -> Response:
    """A picture, of the kind that the end of its name says."""
    media_type = _MEDIA_TYPES[name.rpartition(".")[2]]
    return Response(data, media_type=media_type, headers={"Cache-Control": "private, max-age=3600"})
