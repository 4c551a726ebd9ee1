"""The editor of captions: one picture at a time, find and replace in all, and captions from files."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from jobs.subjects import captions, subject_notes, subject_pictures, subject_settings
from training.spec import MAX_CAPTION_CHARACTERS
from web.auth import ServicesDep
from web.files import picture_response
from web.pages.render import render, segment
from web.pages.session import PageReaderDep, PageRoute, PageTrainerDep
from web.parameters import PictureId, SubjectId
from web.uploads import store_uploads

router = APIRouter(prefix="/subjects/{id}", route_class=PageRoute, include_in_schema=False)

_Text = Annotated[str, Form(max_length=2 * MAX_CAPTION_CHARACTERS, pattern=r"^[^\x00]*$")]


@router.get("/captions")
def editor(
    request: Request,
    services: ServicesDep,
    caller: PageReaderDep,
    subject_id: SubjectId,
    picture: Annotated[str, Query(max_length=100)] = "",
    find: Annotated[str, Query(max_length=MAX_CAPTION_CHARACTERS)] = "",
    changed: Annotated[int | None, Query(ge=0, le=10_000)] = None,
    imported: Literal["", "all", "some"] = "",
) -> Response:
    pictures = subject_pictures.list_pictures(services, caller.owner_id, subject_id)
    at = next((index for index, one in enumerate(pictures) if one.id == picture), 0)
    return render(
        request,
        "captions.html",
        subject_id=subject_id,
        kept=subject_settings.get(services, caller.owner_id, subject_id),
        pictures=pictures,
        at=at,
        captioned=sum(one.caption is not None for one in pictures),
        most_characters=MAX_CAPTION_CHARACTERS,
        find=find,
        found=[one for one in pictures if find and find in (one.caption or "")],
        changed=changed,
        imported=imported,
        notes=subject_notes.get(services, caller.owner_id, subject_id),
        may_train="train" in caller.token.scopes,
    )


@router.post("/captions/{imageId}")
def save(
    services: ServicesDep,
    caller: PageTrainerDep,
    subject_id: SubjectId,
    picture_id: PictureId,
    text: _Text = "",
    then: Annotated[Literal["here", "next", "previous"], Form()] = "here",
) -> Response:
    """Save a caption and open the next picture. The caption of the picture before is saved by going there too."""
    captions.set_all(services, caller.owner_id, subject_id, {picture_id: text.replace("\r\n", "\n")})
    ids = [one.picture_id for one in captions.list_captions(services, caller.owner_id, subject_id)]
    at = ids.index(picture_id) + {"here": 0, "next": 1, "previous": -1}[then]
    shown = ids[min(max(at, 0), len(ids) - 1)]
    return _to_editor(subject_id, f"picture={shown}&notice=captioned" if then == "here" else f"picture={shown}")


@router.post("/captions/all/replace")
def replace(
    services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId, find: _Text = "", replacement: _Text = ""
) -> Response:
    done = captions.replace(services, caller.owner_id, subject_id, find, replacement)
    return _to_editor(subject_id, f"changed={len(done.changed)}#all")


@router.post("/captions/all/prepend")
def prepend(services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId, text: _Text = "") -> Response:
    done = captions.prepend(services, caller.owner_id, subject_id, text)
    return _to_editor(subject_id, f"changed={len(done.changed)}#all")


@router.post("/captions/all/undo")
def undo(services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId) -> Response:
    done = captions.undo(services, caller.owner_id, subject_id)
    return _to_editor(subject_id, f"changed={len(done.changed)}#all")


@router.post("/captions/all/import")
async def import_files(
    request: Request, services: ServicesDep, caller: PageTrainerDep, subject_id: SubjectId
) -> Response:
    stored = await store_uploads(request, services, caller, subject_id, naming="name")
    return _to_editor(subject_id, "imported=some#all" if stored.notes else "imported=all#all")


@router.get("/images/{imageId}/large")
def large(services: ServicesDep, caller: PageReaderDep, subject_id: SubjectId, picture_id: PictureId) -> Response:
    return picture_response(subject_pictures.large(services, caller.owner_id, subject_id, picture_id), "large.jpg")


def _to_editor(subject_id: str, query: str) -> Response:
    return RedirectResponse(f"/subjects/{segment(subject_id)}/captions?{query}", 303)
