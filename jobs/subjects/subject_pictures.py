"""The stored pictures of a subject: taken in with a first look, shown with a verdict, captioned, removed."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from core.clock import utcnow
from core.errors import IllegalMove, ImageInvalid, NotFound
from jobs import keys
from jobs.services import Services
from jobs.stages import intake
from storage.database import insert_if_absent
from storage.tables import PreparedPicture, StoredPicture, Subject
from training.data.pictures import PictureReport, near_duplicates
from training.data.thumbnail import thumbnail
from training.spec import BASE_MODELS, TrainSpec

MOST_PICTURES = 500  # of one subject; a training takes a hundred

_WORDS = {
    "too_small": "too small: {width} by {height} pixels",
    "blurred": "blurred: nothing in it is sharp",
    "over_exposed": "too bright: it has no dark place",
    "under_exposed": "too dark: it has no bright place",
    "near_duplicate": "nearly the same as another picture of this subject",
    "unreadable": "it cannot be read",
    "unreachable": "it could not be fetched",
    "unusable_mask": "its mask could not be fetched or read, or has another shape",
}


def add(services: Services, owner_id: str, subject_id: str, data: bytes, *, is_mask: bool = False) -> str:
    """Keep a picture, or a mask of one, after a first look at it, at the resolution that the subject is trained at;
    its id.

    What the look prepared, a training need not prepare again. Raises ImageInvalid for what is no picture, and
    IllegalMove when the subject has as many as it may.
    """
    with services.database.reading() as session:
        spec = spec_of(session.get(Subject, (owner_id, subject_id)))
        sha256 = hashlib.sha256(data).hexdigest()
        made = session.get(PreparedPicture, (sha256, intake.preparation(spec)))
        if session.exec(select(func.count()).where(*_of(owner_id, subject_id, is_mask))).one() >= MOST_PICTURES:
            raise IllegalMove(f"a subject has at most {MOST_PICTURES} pictures; remove some first")
    made = made or intake.convert(services, data, sha256, spec)
    report = json.loads(made.report)
    if made.key is None or made.sha256 is None:
        raise ImageInvalid(report.get("error", "the picture cannot be read"))
    if is_mask:
        report["bad"] = []  # a mask may be as white, black or flat as it likes
    preview_key = keys.thumbnail(made.sha256)
    if not services.store.exists(preview_key):
        services.store.put(preview_key, thumbnail(services.store.get(made.key)))
    picture_id = intake.store_picture(services, owner_id, subject_id, data, is_mask=is_mask)
    seen = sa.update(StoredPicture).where(col(StoredPicture.id) == picture_id)
    with services.database.writing() as session:
        insert_if_absent(session, made)
        session.connection().execute(seen.values(report=json.dumps(report), preview_key=preview_key))
    return picture_id


def shown(services: Services, owner_id: str, subject_id: str) -> list[dict[str, Any]]:
    """A subject's pictures with their verdicts, oldest first."""
    with services.database.reading() as session:
        return [_view(picture, faults) for picture, faults in _judged(session, owner_id, subject_id)]


def masks(services: Services, owner_id: str, subject_id: str) -> list[dict[str, Any]]:
    """A subject's masks as `shown` has pictures; nothing is held against one."""
    with services.database.reading() as session:
        found = session.exec(select(StoredPicture).where(*_of(owner_id, subject_id, is_mask=True)))
        return [_view(mask, ()) for mask in found]


def usable(session: Session, owner_id: str, subject_id: str) -> list[str]:
    """Ids of the pictures that a training would use."""
    return [picture.id for picture, faults in _judged(session, owner_id, subject_id) if not faults]


def remove(services: Services, owner_id: str, subject_id: str, picture_id: str) -> None:
    """Take a picture away; trainings that use it go on. Again changes nothing. Raises NotFound."""
    with services.database.writing() as session:
        _mine(session, owner_id, subject_id, picture_id)
        gone = sa.update(StoredPicture).where(
            col(StoredPicture.id) == picture_id, col(StoredPicture.removed_at).is_(None)
        )
        session.connection().execute(gone.values(removed_at=utcnow()))


def caption(services: Services, owner_id: str, subject_id: str, picture_id: str, text: str | None) -> dict[str, Any]:
    """Say what a picture shows, for trainings to come; its view. Raises NotFound."""
    with services.database.writing() as session:
        if _mine(session, owner_id, subject_id, picture_id, gone_too=False).is_mask:
            raise NotFound(f"{picture_id} is a mask, which has no caption")
        change = sa.update(StoredPicture).where(col(StoredPicture.id) == picture_id)
        session.connection().execute(change.values(caption=(text or "").strip() or None))
    return next(view for view in shown(services, owner_id, subject_id) if view["id"] == picture_id)


def preview(services: Services, owner_id: str, subject_id: str, picture_id: str) -> bytes:
    """A small JPEG of a picture. Raises NotFound, also where there was no first look."""
    with services.database.reading() as session:
        picture = _mine(session, owner_id, subject_id, picture_id, gone_too=False)
    if picture.preview_key is None:
        raise NotFound(f"there is no preview of {picture_id}")
    return services.store.get(picture.preview_key)


def in_words(fault: str, width: int = 0, height: int = 0) -> str:
    """What is wrong with a picture of this size, for people."""
    return _WORDS[fault].format(width=width, height=height)


def spec_of(subject: Subject | None) -> TrainSpec:
    """A recipe with the resolution at which the subject's pictures are looked at."""
    base_model = subject.base_model if subject is not None and subject.base_model in BASE_MODELS else "sd15"
    return TrainSpec.model_validate({"base_model": base_model, "trigger_word": "look", "seed": 0})


def _of(owner_id: str, subject_id: str, is_mask: bool = False) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        col(StoredPicture.owner_id) == owner_id,
        col(StoredPicture.subject_id) == subject_id,
        col(StoredPicture.is_mask) == is_mask,
        col(StoredPicture.removed_at).is_(None),
    )


def _mine(session: Session, owner_id: str, subject_id: str, picture_id: str, *, gone_too: bool = True) -> StoredPicture:
    picture = session.get(StoredPicture, picture_id)
    if picture is None or (picture.owner_id, picture.subject_id) != (owner_id, subject_id):
        raise NotFound(f"there is no picture {picture_id}")
    if picture.removed_at is not None and not gone_too:
        raise NotFound(f"picture {picture_id} was removed")
    return picture


def _judged(session: Session, owner_id: str, subject_id: str) -> list[tuple[StoredPicture, list[str]]]:
    """Each picture with its faults; of several that are alike the first is good, as the dataset step has it."""
    order = (col(StoredPicture.created_at), col(StoredPicture.id))
    pictures = session.exec(select(StoredPicture).where(*_of(owner_id, subject_id)).order_by(*order)).all()
    judged = [(picture, list(_report(picture).get("bad", []))) for picture in pictures]
    good = [(picture, faults) for picture, faults in judged if not faults and picture.report]
    for index in near_duplicates([PictureReport.from_dict(_report(picture)) for picture, _ in good]):
        good[index][1].append("near_duplicate")
    return judged


def _report(picture: StoredPicture) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(picture.report) if picture.report else {}
    return report


def _view(picture: StoredPicture, faults: Sequence[str]) -> dict[str, Any]:
    report = _report(picture)
    size = {"width": report.get("width", 0), "height": report.get("height", 0)}
    return {
        "id": picture.id,
        "verdict": "bad" if faults else "good" if report else "unknown",
        "faults": [{"code": fault, "text": in_words(fault, **size)} for fault in faults],
        "caption": picture.caption,
        **size,
        "bytes": picture.size_bytes,
        "has_preview": picture.preview_key is not None,
        "created_at": picture.created_at,
    }
