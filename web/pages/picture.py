"""One picture: its preview, its caption, and the editor of its crop and its mask."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, RedirectResponse

from core.errors import NotFound
from jobs.subjects import captions, crops, picture_masks, subject_pictures, subject_settings
from training.spec import MAX_CAPTION_CHARACTERS
from web.auth import ServicesDep
from web.files import picture_response
from web.pages.render import render, segment
from web.pages.session import PageReaderDep, PageRoute, PageTrainerDep
from web.parameters import PictureId, SubjectId
from web.uploads import store_uploads

router = APIRouter(prefix="/subjects/{id}/images/{imageId}", route_class=PageRoute, include_in_schema=False)

_Pixels = Annotated[float, Form(ge=0, le=100_000, allow_inf_nan=False)]


@router.get("/edit")
def editor(
    request: Request, services: ServicesDep, caller: PageReaderDep, subject_id: SubjectId, picture_id: PictureId
) -> Response:
    picture = subject_pictures.get(services, caller.owner_id, subject_id, picture_id)
    kept = subject_settings.get(services, caller.owner_id, subject_id)
    ids = [one.picture_id for one in captions.list_captions(services, caller.owner_id, subject_id)]
    at = ids.index(picture_id)
    return render(
        request,
        "picture.html",
        subject_id=subject_id,
        picture=picture,
        at=at,
        total=len(ids),
        before=ids[at - 1] if at else None,
        after=ids[at + 1] if at + 1 < len(ids) else None,
        mask_id=picture_masks.find(services, caller.owner_id, subject_id, picture_id),
        masks_count=subject_settings.is_masked(kept.recipe or {}),
        may_train="train" in caller.token.scopes,
    )


@router.get("/seen")
def seen(services: ServicesDep, caller: PageReaderDep, subject_id: SubjectId, picture_id: PictureId) -> Response:
    """The part of the picture that a training with the subject's settings sees."""
    spec = subject_pictures.preview_spec(subject_settings.get(services, caller.owner_id, subject_id))
    answer = picture_response(crops.show_crop(services, caller.owner_id, subject_id, picture_id, spec), "seen.jpg")
    answer.headers["Cache-Control"] = "private, no-cache"  # it changes with the crop and the settings
    return answer


@router.post("/crop")
def crop(
    services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId, picture_id: PictureId,
    left: _Pixels, top: _Pixels, width: _Pixels, height: _Pixels,
) -> Response:  # fmt: skip
    crops.set_crop(services, caller.owner_id, subject_id, picture_id, (left, top, width, height))
    return _to_editor(subject_id, picture_id, "cropped")


@router.post("/uncrop")
def uncrop(services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId, picture_id: PictureId) -> Response:
    crops.set_crop(services, caller.owner_id, subject_id, picture_id, None)
    return _to_editor(subject_id, picture_id, "uncropped")


@router.get("/mask")
def mask(services: ServicesDep, caller: PageReaderDep, subject_id: SubjectId, picture_id: PictureId) -> Response:
    """The mask of a picture, white where the picture counts."""
    mask_id = picture_masks.find(services, caller.owner_id, subject_id, picture_id)
    if mask_id is None:
        raise NotFound(f"picture {picture_id} has no mask")
    answer = picture_response(subject_pictures.large(services, caller.owner_id, subject_id, mask_id), "mask.jpg")
    answer.headers["Cache-Control"] = "private, no-cache"  # it changes with the next mask
    return answer


@router.post("/mask")
async def set_mask(
    request: Request, services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId, picture_id: PictureId
) -> Response:
    """Store a mask that was drawn or uploaded. The script sends its drawing and gets JSON."""
    await run_in_threadpool(subject_pictures.get, services, caller.owner_id, subject_id, picture_id)
    name = subject_pictures.mask_name(picture_id)
    stored = await store_uploads(request, services, caller, subject_id, is_mask=True, name=name, naming="none")
    mask_id = stored.images[0].id
    await run_in_threadpool(picture_masks.use, services, caller.owner_id, subject_id, picture_id, mask_id)
    if request.headers.get("accept") == "application/json":
        return JSONResponse({"id": mask_id}, 201)
    return _to_editor(subject_id, picture_id, "masked")


@router.post("/unmask")
def unmask(services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId, picture_id: PictureId) -> Response:
    picture_masks.remove(services, caller.owner_id, subject_id, picture_id)
    return _to_editor(subject_id, picture_id, "unmasked")


@router.get("")
def preview(services: ServicesDep, caller: PageReaderDep, subject_id: SubjectId, picture_id: PictureId) -> Response:
    data = subject_pictures.preview(services, caller.owner_id, subject_id, picture_id)
    return picture_response(data, "preview.jpg")


@router.post("/caption")
def caption(
    services: ServicesDep,
    caller: PageTrainerDep,
    subject_id: SubjectId,
    picture_id: PictureId,
    text: Annotated[str, Form(max_length=MAX_CAPTION_CHARACTERS, pattern=r"^[^\x00]*$")] = "",
) -> Response:
    captions.set_all(services, caller.owner_id, subject_id, {picture_id: text})
    return _to_subject(subject_id, "captioned")


@router.post("/remove")
def remove(services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId, picture_id: PictureId) -> Response:
    removed = subject_pictures.remove(services, caller.owner_id, subject_id, picture_id, services.settings.web_undo_s)
    undo = f"&undo={removed.id}" if removed and removed.status == "waiting" else ""
    return _to_subject(subject_id, f"removed{undo}")


def _to_subject(subject_id: str, notice: str) -> Response:
    return RedirectResponse(f"/subjects/{segment(subject_id)}?notice={notice}", 303)


def _to_editor(subject_id: str, picture_id: str, notice: str) -> Response:
    return RedirectResponse(f"/subjects/{segment(subject_id)}/images/{picture_id}/edit?notice={notice}", 303)
