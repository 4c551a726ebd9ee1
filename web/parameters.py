"""Path parameters of the API and of the page. They refuse only what no name can be; the services check the rest."""

from typing import Annotated

from fastapi import Path
from pydantic import AfterValidator

from core.errors import SpecInvalid
from jobs.requests.training_request import subject_name

# `request_middleware` puts it in place of a slash inside a segment (`%2F`). No text has this character.
SLASH = "\ufdd0"


def _subject(segment: str) -> str:
    try:
        return subject_name(segment.replace(SLASH, "/"))
    except SpecInvalid as error:
        raise ValueError(error.faults["subject_id"]) from None


SubjectId = Annotated[
    str,
    Path(alias="id", min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$", description="The subject's id."),
    AfterValidator(_subject),
]
PictureId = Annotated[str, Path(alias="imageId", min_length=1, max_length=100, pattern=r"^[a-z0-9_]+$")]
TrainingId = Annotated[str, Path(alias="id", min_length=1, max_length=100, pattern=r"^[a-z0-9_]+$")]
PreviewName = Annotated[str, Path(alias="name", max_length=100)]
