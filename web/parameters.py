"""Path parameters of the API and of the page. They refuse only what no name can be; the services check the rest."""

from typing import Annotated

from fastapi import Path

SubjectId = Annotated[
    str, Path(alias="id", min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$", description="The subject's id.")
]
PictureId = Annotated[str, Path(alias="imageId", min_length=1, max_length=100, pattern=r"^[a-z0-9_]+$")]
FetchId = Annotated[str, Path(alias="fetchId", min_length=1, max_length=100, pattern=r"^[a-z0-9_]+$")]
TrainingId = Annotated[str, Path(alias="id", min_length=1, max_length=100, pattern=r"^[a-z0-9_]+$")]
PreviewName = Annotated[str, Path(alias="name", max_length=100)]
