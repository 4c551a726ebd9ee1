"""The mask that an owner draws or uploads for one picture: the part of it that a training counts."""

from sqlmodel import select

from core.errors import SpecInvalid
from jobs.deletion import requests
from jobs.services import Services
from jobs.subjects import subject_pictures, subject_settings
from jobs.subjects.picture_verdicts import OLDEST_FIRST, belongs_to
from jobs.subjects.subject_pictures import SubjectPicture, mask_name
from storage.tables.pictures import StoredPicture
from training.data.folders.file_names import compared_stem


def find(services: Services, owner_id: str, subject_id: str, picture_id: str) -> str | None:
    """The id of the mask that a training with masks uses for this picture."""
    matched = subject_pictures.with_masks(services, owner_id, subject_id, [picture_id])
    return matched[0]["mask"] if isinstance(matched[0], dict) else None


def use(services: Services, owner_id: str, subject_id: str, picture_id: str, mask_id: str) -> None:
    """Make a stored mask the one of its picture, and have later trainings use masks.

    Raises SpecInvalid for a mask of another shape, which is removed again, and NotFound.
    """
    picture = subject_pictures.get(services, owner_id, subject_id, picture_id)
    for mask in subject_pictures.list_masks(services, owner_id, subject_id, [mask_id]):
        if not _are_alike(picture, mask):
            subject_pictures.remove(services, owner_id, subject_id, mask_id)
            sizes = f"it has {mask.width} by {mask.height} pixels, the picture {picture.width} by {picture.height}"
            raise SpecInvalid.of({"files": f"the mask must have the shape of the picture; {sizes}"})
    _remove_others(services, owner_id, subject_id, picture_id, kept=mask_id)
    _count_masks(services, owner_id, subject_id, True)


def remove(services: Services, owner_id: str, subject_id: str, picture_id: str) -> None:
    """Remove the mask of a picture. With the last one, later trainings count whole pictures. Raises NotFound."""
    subject_pictures.get(services, owner_id, subject_id, picture_id)
    _remove_others(services, owner_id, subject_id, picture_id, kept=None)
    if (by_name := find(services, owner_id, subject_id, picture_id)) is not None:
        subject_pictures.remove(services, owner_id, subject_id, by_name)
    if not subject_pictures.list_masks(services, owner_id, subject_id):
        _count_masks(services, owner_id, subject_id, False)


def _are_alike(picture: SubjectPicture, mask: SubjectPicture) -> bool:
    """Whether both have the same aspect ratio, allowing for rounding, as a training demands."""
    sides = (picture.width, picture.height, mask.width, mask.height)
    return abs(picture.width * mask.height - picture.height * mask.width) <= max(sides)


def _remove_others(services: Services, owner_id: str, subject_id: str, picture_id: str, kept: str | None) -> None:
    """Remove the masks that belong to this picture alone, except `kept`."""
    with services.database.writing() as session:
        masks = session.exec(
            select(StoredPicture).where(*belongs_to(owner_id, subject_id, True)).order_by(*OLDEST_FIRST)
        ).all()
        for mask in masks:
            if mask.id != kept and mask.name and compared_stem(mask.name) == compared_stem(mask_name(picture_id)):
                requests.remove_picture(session, services.settings, mask)


def _count_masks(services: Services, owner_id: str, subject_id: str, masked: bool) -> None:
    """Set the recipe's `objective.masked`, or leave it out, and keep its other options."""
    recipe = dict(subject_settings.get(services, owner_id, subject_id).recipe or {})
    if subject_settings.is_masked(recipe) == masked:
        return
    objective = {name: value for name, value in (recipe.get("objective") or {}).items() if name != "masked"}
    objective |= {"masked": True} if masked else {}
    recipe.pop("objective", None)
    recipe |= {"objective": objective} if objective else {}
    subject_settings.change(services, owner_id, subject_id, {"recipe": recipe or None})
