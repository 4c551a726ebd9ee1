"""Pictures: stored, refused, changed."""

from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

from pydantic import ConfigDict, Field

from training.spec import MAX_CAPTION_CHARACTERS, MIN_PICTURES
from web.models.common import PICTURE, RequestModel, ResponseModel


class ImageAddresses(RequestModel):
    """Pictures to fetch: `url` or `urls`."""

    model_config = ConfigDict(json_schema_extra={"example": {"urls": ["https://pictures.example/rex1.jpg"]}})

    url: str | None = Field(None, max_length=4000)
    urls: list[str] | None = Field(None, min_length=1, max_length=20)


class Fault(ResponseModel):
    """What is wrong with a picture, as a word and in words."""

    code: str
    text: str


class Image(ResponseModel):
    """A stored picture of a subject."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": PICTURE,
                "verdict": "bad",
                "faults": [{"code": "too_small", "text": "too small: 200 by 150 pixels"}],
                "caption": None,
                "width": 200,
                "height": 150,
                "bytes": 48211,
                "previewUrl": f"/api/influencer/rex/images/{PICTURE}/preview",
                "createdAt": "2026-11-22T10:00:00+00:00",
            }
        }
    )

    id: str
    verdict: Literal["good", "bad", "unknown"]
    faults: list[Fault]
    caption: str | None
    width: int
    height: int
    bytes: int
    preview_url: str | None
    created_at: datetime


class Images(ResponseModel):
    """The pictures of a subject."""

    images: list[Image]
    good: int = Field(description="How many a training could use.")
    needed: int = Field(MIN_PICTURES, description="How many good ones a training takes at least.")


class RefusedImage(ResponseModel):
    """A file or address of the request that was not stored, by its place in the request."""

    index: int
    code: str
    detail: str


class StoredImages(ResponseModel):
    """What became of the pictures of a request."""

    images: list[Image]
    refused: list[RefusedImage]


class ImageChange(RequestModel):
    """A new caption; null takes it away."""

    model_config = ConfigDict(json_schema_extra={"example": {"caption": "sks dog on a sofa"}})

    caption: str | None = Field(max_length=MAX_CAPTION_CHARACTERS, pattern=r"^[^\x00]*$")


def image_of(subject_id: str, view: dict[str, Any]) -> Image:
    """The answer for one of a subject's pictures."""
    address = f"/api/influencer/{quote(subject_id, safe='')}/images/{view['id']}/preview"
    faults = [Fault(**fault) for fault in view["faults"]]
    return Image(**{**view, "faults": faults, "preview_url": address if view["has_preview"] else None})
