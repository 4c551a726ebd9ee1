"""The editor of one picture: the part of it that is trained."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from jobs.subjects import captions, crops, subject_pictures, subject_settings
from web.auth import ServicesDep
from web.files import picture_response
from web.pages.render import render, segment
from web.pages.session import PageReaderDep, PageRoute, PageTrainerDep
from web.parameters import PictureId, SubjectId

router = APIRouter(prefix="/subjects/{id}/images/{imageId}", route_class=PageRoute, include_in_schema=False)

_Pixels = Annotated[float, Form(ge=0, le=100_000, allow_inf_nan=False)]


@router.get("/edit")
def editor(
    request: Request, services: ServicesDep, caller: PageReaderDep, subject_id: SubjectId, picture_id: PictureId
) -> Response:
    picture = subject_pictures.get(services, caller.owner_id, subject_id, picture_id)
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


def _to_editor(subject_id: str, picture_id: str, notice: str) -> Response:
    return RedirectResponse(f"/subjects/{segment(subject_id)}/images/{picture_id}/edit?notice={notice}", 303)
