"""What is known of a picture, as the `report` columns hold it: its measured quality, or why it cannot be used."""

from pydantic import BaseModel, ConfigDict, Field


def is_absent(value: object) -> bool:
    """Whether a field is left out of the JSON."""
    return value is None


class StoredReport(BaseModel):
    """The report of a picture. What was not measured, or does not apply, is absent from the JSON."""

    model_config = ConfigDict(frozen=True)  # and what it does not know, of another version, it ignores

    # Measured; see `training.data.quality.PictureReport`.
    width: int | None = Field(None, exclude_if=is_absent)
    height: int | None = Field(None, exclude_if=is_absent)
    format: str | None = Field(None, exclude_if=is_absent)
    sharpness: float | None = Field(None, exclude_if=is_absent)
    brightness: float | None = Field(None, exclude_if=is_absent)
    dhash: str = Field("", exclude_if=lambda value: not value)
    faults: list[str] | None = Field(None, exclude_if=is_absent)
    notes: list[str] | None = Field(None, exclude_if=is_absent)
    colours: str = Field("", exclude_if=lambda value: not value)

    repeats: int | None = Field(None, exclude_if=is_absent)  # the position of the picture that it nearly repeats
    error: str | None = Field(None, exclude_if=is_absent)
    code: str | None = Field(None, exclude_if=is_absent)  # of the error
    bad: list[str] | None = Field(None, exclude_if=is_absent)  # the faults for which it is left out
