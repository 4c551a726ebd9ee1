"""The part of a picture that is trained: chosen by its owner, and shown as the training will see it."""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlmodel import Session, col

from core.errors import IllegalMove, SpecInvalid
from jobs import keys, shared_objects
from jobs.services import Services
from jobs.stages import intake, picture_source
from jobs.subjects import subject_pictures
from jobs.subjects.subject_pictures import SubjectPicture
from storage.database import insert_if_absent
from storage.tables.pictures import PreparedPicture, StoredPicture, Subject
from training.data.framing import Crop
from training.data.thumbnail import thumbnail
from training.spec import TrainSpec


def set_crop(
    services: Services, owner_id: str, subject_id: str, picture_id: str, box: Sequence[float] | None
) -> SubjectPicture:
    """Set the part of a picture that later trainings use, in its pixels: left, top, width and height.

    None: the whole picture again. Raises NotFound, SpecInvalid for a box that is not in the picture, IllegalMove for a
    picture that was not checked yet.
    """
    with services.database.reading() as session:
        picture = _get(session, owner_id, subject_id, picture_id)
        spec = subject_pictures.preview_spec(session.get(Subject, (owner_id, subject_id)))
    crop = None if box is None else _crop(picture, box).to_list()
    made, png = _prepare(services, picture, spec, crop)
    preview_key, small = keys.thumbnail(made.sha256 or ""), thumbnail(png)
    shared_objects.make_sure(services, preview_key, small)
    change = sa.update(StoredPicture).where(col(StoredPicture.id) == picture_id)

    def record() -> None:
        with services.database.writing() as session:
            shared_objects.record_use(session, preview_key)
            session.connection().execute(change.values(crop=crop, preview_key=preview_key))
            if picture.preview_key not in (None, preview_key):
                shared_objects.note_unused(session, [str(picture.preview_key)])

    shared_objects.with_patience(record)
    shared_objects.make_sure(services, preview_key, small)
    return subject_pictures.get(services, owner_id, subject_id, picture_id)


def show_crop(services: Services, owner_id: str, subject_id: str, picture_id: str, spec: TrainSpec) -> bytes:
    """A JPEG of the part that a training with this recipe sees. Raises NotFound and IllegalMove.

    The picture is prepared for it as for a training, which then does not prepare it again.
    """
    with services.database.reading() as session:
        picture = _get(session, owner_id, subject_id, picture_id)
    return thumbnail(_prepare(services, picture, spec, picture.crop)[1])


def _get(session: Session, owner_id: str, subject_id: str, picture_id: str) -> StoredPicture:
    return subject_pictures.get_row(session, owner_id, subject_id, picture_id, gone_too=False)


def _crop(picture: StoredPicture, box: Sequence[float]) -> Crop:
    report = picture.report
    if report is None or not report.width or not report.height:
        raise IllegalMove("the picture was not checked yet, so its size is not known")
    left, top, width, height = box
    crop = Crop(left / report.width, top / report.height, (left + width) / report.width, (top + height) / report.height)
    if not crop.is_valid:
        size = f"{report.width} by {report.height} pixels"
        raise SpecInvalid.of({"crop": f"must be inside the picture of {size}, and at least a hundredth of it"})
    return crop


def _prepare(
    services: Services, picture: StoredPicture, spec: TrainSpec, crop: Sequence[float] | None
) -> tuple[PreparedPicture, bytes]:
    """The picture as a training gets it, and its PNG, prepared unless that was done before. Raises IllegalMove."""

    def convert() -> PreparedPicture:
        data = services.store.get(picture.key)
        return picture_source.convert(services, data, picture.sha256, spec, picture.owner_id, crop=crop)

    with services.database.reading() as session:
        known = session.get(PreparedPicture, (picture.sha256, intake.preparation(spec, crop=crop)))
    made = known or convert()
    if made.key is None or made.sha256 is None:
        raise IllegalMove(made.report.error or "the picture cannot be read")
    png, key = subject_pictures.prepared_png(services, made, convert), made.key

    def record() -> None:
        with services.database.writing() as session:
            shared_objects.record_use(session, key)
            insert_if_absent(session, made)

    if known is None:
        shared_objects.with_patience(record)
        shared_objects.make_sure(services, key, png)
    return made, png
