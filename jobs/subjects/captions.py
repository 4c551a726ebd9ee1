"""The captions of a subject's pictures: listed, set, changed many at a time, and changed back."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from core.errors import IllegalMove, NotFound, SpecInvalid
from core.ids import new_id
from jobs.deletion import guard
from jobs.services import Services
from jobs.subjects import picture_verdicts
from storage.database import lock_name
from storage.tables.captions import CaptionChange
from storage.tables.pictures import StoredPicture
from training.spec import MAX_CAPTION_CHARACTERS

Kind = Literal["set", "replace", "prepend", "upload", "auto"]
MAX_KEPT = 20  # changes of a subject that can be undone


@dataclass(frozen=True)
class Caption:
    """The caption of one picture; None: it is trained with "a photo of {trigger word} {class word}"."""

    picture_id: str
    name: str | None
    caption: str | None


@dataclass(frozen=True)
class CaptionsChanged:
    """The pictures whose captions were changed, with their captions now."""

    kind: str
    changed: list[Caption]


def list_captions(services: Services, owner_id: str, subject_id: str) -> list[Caption]:
    """The captions of a subject's pictures, oldest picture first."""
    with services.database.reading() as session:
        return [_view(picture) for picture in _pictures(session, owner_id, subject_id)]


def set_all(
    services: Services, owner_id: str, subject_id: str, texts: Mapping[str, str | None], *, kind: Kind = "set"
) -> CaptionsChanged:
    """Set the captions of pictures, by id, for later trainings; None or blanks remove one.

    Raises NotFound for an id that the subject does not have, SpecInvalid for a caption that is too long.
    """
    ids = _ids(texts)
    return _change(services, owner_id, subject_id, kind, ids, lambda picture: texts[picture.id])


def replace(
    services: Services, owner_id: str, subject_id: str, find: str, replacement: str, ids: Collection[str] | None = None
) -> CaptionsChanged:
    """Replace a text in the captions of some pictures, or of all; upper and lower case count.

    Raises NotFound and SpecInvalid as `set_all`.
    """
    if not find:
        raise SpecInvalid.of({"find": "must not be empty"})

    def changed(picture: StoredPicture) -> str | None:
        return None if picture.caption is None else picture.caption.replace(find, replacement)

    return _change(services, owner_id, subject_id, "replace", _ids(ids), changed)


def prepend(
    services: Services, owner_id: str, subject_id: str, text: str, ids: Collection[str] | None = None
) -> CaptionsChanged:
    """Put a text in front of the captions of some pictures, or of all. A picture without a caption stays without.

    Raises NotFound and SpecInvalid as `set_all`.
    """
    if not text.strip():
        raise SpecInvalid.of({"prepend": "must not be empty"})

    def changed(picture: StoredPicture) -> str | None:
        return None if picture.caption is None else text + picture.caption

    return _change(services, owner_id, subject_id, "prepend", _ids(ids), changed)


def undo(services: Services, owner_id: str, subject_id: str) -> CaptionsChanged:
    """Take back the last change of captions that was not taken back. Raises IllegalMove if there is none.

    A picture that was removed since then stays removed.
    """
    with services.database.writing() as session:
        _lock(session, owner_id, subject_id)
        change = session.exec(_changes(owner_id, subject_id).limit(1)).first()
        if change is None:
            raise IllegalMove("there is no change of captions to take back")
        pictures = {picture.id: picture for picture in _pictures(session, owner_id, subject_id)}
        changed = []
        for picture_id, caption in change.before.items():
            if (picture := pictures.get(picture_id)) is not None:
                picture.caption = caption
                session.add(picture)
                changed.append(_view(picture))
        session.delete(change)
    return CaptionsChanged("undo", changed)


def _ids(given: Collection[str] | None) -> set[str] | None:
    return None if given is None else set(given)


def _change(
    services: Services, owner_id: str, subject_id: str, kind: Kind, ids: set[str] | None,
    caption_of: Callable[[StoredPicture], str | None],
) -> CaptionsChanged:  # fmt: skip
    """Give the pictures with these ids (None: all) a new caption each, and remember the old ones."""
    with services.database.writing() as session:
        guard.lock_owner(session, owner_id)
        guard.refuse_if_deleting(session, owner_id, subject_id)
        _lock(session, owner_id, subject_id)
        pictures = _pictures(session, owner_id, subject_id)
        if ids is not None and (missing := sorted(ids - {picture.id for picture in pictures})):
            raise NotFound(f"the subject has no picture {missing[0]}")
        chosen = [picture for picture in pictures if ids is None or picture.id in ids]
        return _set(session, owner_id, subject_id, kind, [(picture, caption_of(picture)) for picture in chosen])


def record(
    session: Session, owner_id: str, subject_id: str, texts: Mapping[str, str | None], *, kind: Kind
) -> CaptionsChanged:
    """Set captions by picture id, as one change, in the caller's transaction. Removed pictures are passed over."""
    _lock(session, owner_id, subject_id)
    chosen = [picture for picture in _pictures(session, owner_id, subject_id) if picture.id in texts]
    return _set(session, owner_id, subject_id, kind, [(picture, texts[picture.id]) for picture in chosen])


def _set(
    session: Session, owner_id: str, subject_id: str, kind: Kind, texts: Iterable[tuple[StoredPicture, str | None]]
) -> CaptionsChanged:
    """Give each picture its caption, and remember the old ones."""
    before: dict[str, str | None] = {}
    changed = []
    for picture, given in texts:
        text = (given or "").strip() or None
        if text is not None and len(text) > MAX_CAPTION_CHARACTERS:
            fault = f"would have {len(text)} characters; a caption has at most {MAX_CAPTION_CHARACTERS}"
            raise SpecInvalid.of({picture.id: fault})
        if text != picture.caption:
            before[picture.id] = picture.caption
            picture.caption = text
            session.add(picture)
            changed.append(_view(picture))
    if before:
        session.add(CaptionChange(id=new_id("cap"), owner_id=owner_id, subject_id=subject_id, kind=kind, before=before))
        session.flush()
        for old in session.exec(_changes(owner_id, subject_id).offset(MAX_KEPT)).all():
            session.delete(old)
    return CaptionsChanged(kind, changed)


def _lock(session: Session, owner_id: str, subject_id: str) -> None:
    """Let changes of one subject's captions wait for each other."""
    lock_name(session, f"captions {owner_id} {subject_id}")


def _pictures(session: Session, owner_id: str, subject_id: str) -> list[StoredPicture]:
    belong = picture_verdicts.belongs_to(owner_id, subject_id)
    return list(session.exec(select(StoredPicture).where(*belong).order_by(*picture_verdicts.OLDEST_FIRST)))


def _changes(owner_id: str, subject_id: str) -> SelectOfScalar[CaptionChange]:
    """The changes of a subject that can be taken back, newest first."""
    return (
        select(CaptionChange)
        .where(CaptionChange.owner_id == owner_id, CaptionChange.subject_id == subject_id)
        .order_by(col(CaptionChange.created_at).desc(), col(CaptionChange.id).desc())
    )


def _view(picture: StoredPicture) -> Caption:
    return Caption(picture.id, picture.name, picture.caption)
