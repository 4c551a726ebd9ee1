"""The stored pictures of a subject: added with a first check, listed with a verdict, captioned, removed."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from core.errors import IllegalMove, ImageInvalid, NotFound
from jobs import keys, shared_objects
from jobs.deletion import requests
from jobs.deletion.requests import DeletionView
from jobs.services import Services
from jobs.stages import intake, picture_source
from jobs.subjects.picture_verdicts import OLDEST_FIRST, belongs_to, judge_all, judge_some
from storage.database import insert_if_absent
from storage.picture_report import StoredReport
from storage.tables.pictures import PreparedPicture, StoredPicture, Subject
from training.data.folders.file_names import compared_stem
from training.data.framing import Frame, View
from training.data.thumbnail import thumbnail
from training.data.verdict import Verdict
from training.families.registry import BASE_MODELS
from training.spec import TrainSpec

LARGE_SIDE = 1280  # pixels
MAX_STORED_PICTURES = 2000  # of one subject; a training uses at most half as many


@dataclass(frozen=True)
class PictureFault:
    """What is wrong with a picture: a code for programs and a text for people."""

    code: str
    text: str


@dataclass(frozen=True)
class SubjectPicture:
    """A stored picture of a subject, and whether a training would use it at the resolution that was asked for.

    `view` is the part that the training sees, in pixels of the picture, and its size there. Warnings leave nothing out.
    """

    id: str
    name: str | None
    verdict: Literal["good", "bad", "unknown"]
    faults: list[PictureFault]
    warnings: list[str]
    view: View | None
    is_cropped: bool  # whether the owner has chosen the part
    caption: str | None
    width: int
    height: int
    bytes: int
    has_preview: bool
    created_at: datetime


def add(
    services: Services, owner_id: str, subject_id: str, data: bytes, *, is_mask: bool = False, name: str | None = None
) -> str:
    """Store a picture or a mask after a first check, at the resolution that the subject is trained at. Returns its id.

    A training does not prepare the picture again. Raises ImageInvalid for a file that is not a picture, and IllegalMove
    if the subject has the maximum number of pictures.
    """
    with services.database.reading() as session:
        spec = preview_spec(session.get(Subject, (owner_id, subject_id)))
        sha256 = hashlib.sha256(data).hexdigest()
        made = session.get(PreparedPicture, (sha256, intake.preparation(spec)))
        if (
            session.exec(select(func.count()).where(*belongs_to(owner_id, subject_id, is_mask))).one()
            >= MAX_STORED_PICTURES
        ):
            raise IllegalMove(f"a subject can have at most {MAX_STORED_PICTURES} pictures; remove some first")
    made = made or picture_source.convert(services, data, sha256, spec, owner_id)
    report = made.report
    if made.key is None or made.sha256 is None:
        raise ImageInvalid(report.error or "the picture cannot be read")
    if is_mask:
        report = report.model_copy(update={"bad": []})  # a mask may be all white, black or flat
    png = prepared_png(services, made, lambda: picture_source.convert(services, data, sha256, spec, owner_id))
    preview_key, small = keys.thumbnail(made.sha256), thumbnail(png)
    shared_objects.make_sure(services, preview_key, small)
    picture_id = intake.store_picture(services, owner_id, subject_id, data, is_mask=is_mask, name=name)
    checked = sa.update(StoredPicture).where(col(StoredPicture.id) == picture_id)

    def record() -> None:
        with services.database.writing() as session:
            shared_objects.record_use(session, keys.prepared(made.sha256 or ""), preview_key)
            insert_if_absent(session, made)
            session.connection().execute(checked.values(report=report, preview_key=preview_key))

    shared_objects.with_patience(record)
    shared_objects.make_sure(services, made.key, png)
    shared_objects.make_sure(services, preview_key, small)
    return picture_id


def prepared_png(services: Services, made: PreparedPicture, convert: Callable[[], PreparedPicture]) -> bytes:
    """The prepared picture, converted again if it was deleted with its last user a moment ago."""
    key = str(made.key)
    try:
        return services.store.get(key)
    except NotFound:
        convert()
        return services.store.get(key)


def list_pictures(
    services: Services, owner_id: str, subject_id: str, frame: Frame | None = None
) -> list[SubjectPicture]:
    """A subject's pictures, oldest first, with their verdicts at `frame`, or as the subject's settings have it."""
    with services.database.reading() as session:
        frame = frame or frame_of(preview_spec(session.get(Subject, (owner_id, subject_id))))
        return [_view(picture, verdict) for picture, verdict in judge_all(session, owner_id, subject_id, frame)]


def get_all(services: Services, owner_id: str, subject_id: str, picture_ids: Collection[str]) -> list[SubjectPicture]:
    """These pictures of a subject, as `list_pictures` shows them, without judging all the others."""
    with services.database.reading() as session:
        frame = frame_of(preview_spec(session.get(Subject, (owner_id, subject_id))))
        found = judge_some(session, owner_id, subject_id, frame, picture_ids)
        return [_view(picture, verdict) for picture, verdict in found]


def list_masks(
    services: Services, owner_id: str, subject_id: str, mask_ids: Collection[str] | None = None
) -> list[SubjectPicture]:
    """A subject's masks, all or these, in the form of `list_pictures`; a mask has no faults."""
    query = select(StoredPicture).where(*belongs_to(owner_id, subject_id, is_mask=True))
    if mask_ids is not None:
        query = query.where(col(StoredPicture.id).in_(mask_ids))
    with services.database.reading() as session:
        return [_view(mask, Verdict([], [], [], None)) for mask in session.exec(query)]


def usable_ids(session: Session, owner_id: str, subject_id: str) -> list[str]:
    """The ids of the pictures that a training with the subject's settings would use."""
    frame = frame_of(preview_spec(session.get(Subject, (owner_id, subject_id))))
    return [picture.id for picture, verdict in judge_all(session, owner_id, subject_id, frame) if not verdict.faults]


def remove(
    services: Services, owner_id: str, subject_id: str, picture_id: str, grace_s: float = 0
) -> DeletionView | None:
    """Remove a picture; it is deleted as soon as no active training uses it, and not before `grace_s`.

    Removing it again changes nothing; the result is None if it was deleted before. Raises NotFound.
    """
    with services.database.writing() as session:
        is_gone = session.get(StoredPicture, picture_id) is None
        if is_gone and requests.was_deleted(session, owner_id, picture_id):
            return None
        picture = get_row(session, owner_id, subject_id, picture_id)
        return requests.view_of(requests.remove_picture(session, services.settings, picture, grace_s))


def get(services: Services, owner_id: str, subject_id: str, picture_id: str) -> SubjectPicture:
    """A picture in the form of `list_pictures`. Raises NotFound."""
    for view in get_all(services, owner_id, subject_id, [picture_id]):
        return view
    raise NotFound(f"there is no picture {picture_id}")


def preview(services: Services, owner_id: str, subject_id: str, picture_id: str) -> bytes:
    """A small JPEG of a picture. Raises NotFound, also for a picture without a first check."""
    with services.database.reading() as session:
        picture = get_row(session, owner_id, subject_id, picture_id, gone_too=False)
    if picture.preview_key is None:
        raise NotFound(f"there is no preview of {picture_id}")
    return services.store.get(picture.preview_key)


def large(services: Services, owner_id: str, subject_id: str, picture_id: str) -> bytes:
    """A JPEG of the whole picture, at most LARGE_SIDE pixels a side, as its owner looks at it.

    Raises NotFound, and IllegalMove for a picture that cannot be read.
    """
    with services.database.reading() as session:
        picture = get_row(session, owner_id, subject_id, picture_id, gone_too=False)
    try:
        made = services.decoder.prepare(
            services.store.get(picture.key), resolution=LARGE_SIDE, whole=True, owner_id=owner_id
        )
    except ImageInvalid as error:
        raise IllegalMove(error.message) from None
    return thumbnail(made.png, LARGE_SIDE)


def preview_spec(subject: Subject | None) -> TrainSpec:
    """A recipe with the size at which the subject's pictures are checked."""
    base_model = subject.base_model if subject is not None and subject.base_model in BASE_MODELS else "sd15"
    recipe = (subject.recipe if subject is not None else None) or {}
    size = {name: recipe[name] for name in ("resolution", "aspect_buckets") if name in recipe}
    return TrainSpec.model_validate({"base_model": base_model, "trigger_word": "x", "seed": 0, **size})


def frame_of(spec: TrainSpec) -> Frame:
    """The size at which a recipe trains pictures."""
    return Frame(spec.resolution, spec.aspect_buckets)


def mask_name(picture_id: str) -> str:
    """The name that ties a mask to one picture, also to one without a name."""
    return f"{picture_id}.png"


def with_masks(services: Services, owner_id: str, subject_id: str, images: Sequence[Any]) -> list[Any]:
    """The pictures of a request, each id with its mask, if it has one.

    That is the newest mask that is named by the id of the picture (`mask_name`), or else by the picture's name.
    """
    with services.database.reading() as session:
        masks = session.exec(
            select(StoredPicture).where(*belongs_to(owner_id, subject_id, True)).order_by(*OLDEST_FIRST)
        )
        by_name = {compared_stem(mask.name): mask.id for mask in masks if mask.name}
        pictures = session.exec(select(StoredPicture).where(*belongs_to(owner_id, subject_id)))
        found = {
            one.id: by_name.get(compared_stem(mask_name(one.id))) or (one.name and by_name.get(compared_stem(one.name)))
            for one in pictures
        }
    return [
        {"ref": image, "mask": mask} if isinstance(image, str) and (mask := found.get(image)) else image
        for image in images
    ]


def get_row(
    session: Session, owner_id: str, subject_id: str, picture_id: str, *, gone_too: bool = True
) -> StoredPicture:
    """The row of a picture or mask; `gone_too`: also of one that was removed. Raises NotFound."""
    picture = session.get(StoredPicture, picture_id)
    if picture is None or (picture.owner_id, picture.subject_id) != (owner_id, subject_id):
        raise NotFound(f"there is no picture {picture_id}")
    if picture.removed_at is not None and not gone_too:
        raise NotFound(f"picture {picture_id} was removed")
    return picture


def _view(picture: StoredPicture, verdict: Verdict) -> SubjectPicture:
    report = picture.report or StoredReport()
    return SubjectPicture(
        id=picture.id,
        name=picture.name,
        verdict="bad" if verdict.faults else "good" if picture.report else "unknown",
        faults=[PictureFault(*pair) for pair in zip(verdict.faults, verdict.texts, strict=True)],
        warnings=[] if verdict.faults else verdict.warnings,
        view=verdict.view,
        is_cropped=picture.crop is not None,
        caption=picture.caption,
        width=report.width or 0,
        height=report.height or 0,
        bytes=picture.size_bytes,
        has_preview=picture.preview_key is not None,
        created_at=picture.created_at,
    )
