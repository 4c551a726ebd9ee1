"""Pictures of a subject: what a client sends, and what the API answers."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Literal, Self
from urllib.parse import quote

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from jobs.subjects.captions import Caption
from jobs.subjects.image_fetches import MAX_ADDRESSES, FetchProgress
from jobs.subjects.subject_pictures import MAX_STORED_PICTURES, SubjectPicture
from training.data.framing import View
from training.spec import MAX_CAPTION_CHARACTERS, MIN_PICTURES
from web.models.common import FETCH, PICTURE, RequestModel, ResponseModel


class ImageAddresses(RequestModel):
    """Addresses of pictures to fetch: `url` or `urls`."""

    model_config = ConfigDict(json_schema_extra={"example": {"urls": ["https://pictures.example/rex1.jpg"]}})

    url: str | None = Field(None, max_length=4000)
    urls: list[str] | None = Field(None, min_length=1, max_length=MAX_ADDRESSES)


class Fault(ResponseModel):
    """What is wrong with a picture: a code for programs and a text for people."""

    code: str
    text: str


class Box(ResponseModel):
    """A part of a picture, in its pixels."""

    left: float
    top: float
    width: float
    height: float


class Seen(Box):
    """The part of a picture that a training sees, and its size there."""

    trained_width: int
    trained_height: int


class CropChange(RequestModel):
    """The part of a picture to train on, in its pixels."""

    model_config = ConfigDict(json_schema_extra={"example": {"left": 0, "top": 120, "width": 1080, "height": 1080}})

    left: float = Field(ge=0, le=1e6)
    top: float = Field(ge=0, le=1e6)
    width: float = Field(gt=0, le=1e6)
    height: float = Field(gt=0, le=1e6)


class Image(ResponseModel):
    """A stored picture of a subject."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": PICTURE,
                "name": "rex1.jpg",
                "verdict": "good",
                "faults": [],
                "warnings": [],
                "seen": {
                    "left": 200,
                    "top": 0,
                    "width": 1200,
                    "height": 1200,
                    "trainedWidth": 512,
                    "trainedHeight": 512,
                },
                "isCropped": False,
                "caption": None,
                "width": 1600,
                "height": 1200,
                "bytes": 48211,
                "previewUrl": f"/api/influencer/rex/images/{PICTURE}/preview",
                "createdAt": "2026-11-22T10:00:00+00:00",
            }
        }
    )

    id: str
    name: str | None = Field(description="The name of its file, if that is known.")
    verdict: Literal["good", "bad", "unknown"]
    faults: list[Fault]
    warnings: list[str] = Field(description="What does not leave it out, such as that it is enlarged.")
    seen: Seen | None = Field(description="The part that a training sees. Null for a picture that was not checked yet.")
    is_cropped: bool = Field(description="Whether that part was set by its owner.")
    caption: str | None
    width: int
    height: int
    bytes: int
    preview_url: str | None
    created_at: datetime


class Images(ResponseModel):
    """The pictures of a subject."""

    images: list[Image]
    notes: list[str] = Field(
        description="What was noted about files of uploads that were not used, one line each, until it is dismissed."
    )
    good: int = Field(description="How many of them a training can use.")
    needed: int = Field(MIN_PICTURES, description="How many good pictures a training needs at least.")


class RefusedImage(ResponseModel):
    """A file or address that was not stored; `index` is its position in the request, from 0."""

    index: int
    code: str
    detail: str


class StoredImages(ResponseModel):
    """The pictures of a request that were stored, and those that were refused."""

    images: list[Image]
    refused: list[RefusedImage]
    notes: list[str] = Field([], description="Every other file that was not used, and why, one line each.")


class ImageFetch(StoredImages):
    """Pictures that a worker fetches from addresses, as far as it is."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": FETCH,
                "status": "waiting",
                "waiting": 1,
                "url": f"/api/influencer/rex/images/fetches/{FETCH}",
                "images": [],
                "refused": [],
                "notes": [],
            }
        }
    )

    id: str
    status: Literal["waiting", "done"]
    waiting: int = Field(description="How many addresses have neither a picture nor a refusal yet.")
    url: str = Field(description="Where to ask again.")


class ImageCaption(ResponseModel):
    """The caption of a picture; without one it is trained with "a photo of", the trigger word and the class word."""

    id: str
    name: str | None = Field(description="The name of its file, if that is known.")
    caption: str | None


class Captions(ResponseModel):
    """The captions of a subject's pictures."""

    captions: list[ImageCaption]


_Text = Annotated[str, StringConstraints(max_length=MAX_CAPTION_CHARACTERS, pattern=r"^[^\x00]*$")]


class CaptionsChange(RequestModel):
    """One change of captions: `captions`, `find` with `replace`, or `prepend`."""

    model_config = ConfigDict(json_schema_extra={"example": {"find": "puppy", "replace": "sks dog"}})

    captions: dict[str, _Text | None] | None = Field(
        None, min_length=1, max_length=MAX_STORED_PICTURES, description="New captions by image id; null removes one."
    )
    find: _Text | None = Field(None, description="A text to replace; upper and lower case count.")
    replace: _Text | None = Field(None, description="What it is replaced with.")
    prepend: _Text | None = Field(None, description="A text to put in front of captions, as it is: with its space.")
    image_ids: list[str] | None = Field(
        None, max_length=MAX_STORED_PICTURES, description="The pictures to change. Default: all of the subject."
    )

    @model_validator(mode="after")
    def _is_one_change(self) -> Self:
        changes = [self.captions is not None, self.find is not None, self.prepend is not None]
        if sum(changes) != 1:
            raise ValueError("give one of captions, find and prepend")
        if (self.find is None) != (self.replace is None):
            raise ValueError("give find and replace together")
        if self.captions is not None and self.image_ids is not None:
            raise ValueError("captions name their images themselves; leave imageIds out")
        return self


class CaptionsChanged(Captions):
    """The captions that were changed, as they are now."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "kind": "replace", "captions": [{"id": PICTURE, "name": "rex1.jpg", "caption": "sks dog on a sofa"}]
            }
        }
    )  # fmt: skip

    kind: Literal["set", "replace", "prepend", "undo"]


def captions_of(found: Sequence[Caption]) -> list[ImageCaption]:
    """The response for captions."""
    return [ImageCaption(id=one.picture_id, name=one.name, caption=one.caption) for one in found]


class ImageChange(RequestModel):
    """A new caption; null removes it."""

    model_config = ConfigDict(json_schema_extra={"example": {"caption": "sks dog on a sofa"}})

    caption: str | None = Field(max_length=MAX_CAPTION_CHARACTERS, pattern=r"^[^\x00]*$")


def image_fetch_of(subject_id: str, progress: FetchProgress) -> ImageFetch:
    """The response for a fetch."""
    return ImageFetch(
        id=progress.fetch_id,
        status=progress.status,
        waiting=progress.waiting,
        url=f"/api/influencer/{quote(subject_id, safe='')}/images/fetches/{progress.fetch_id}",
        images=[image_of(subject_id, picture) for picture in progress.images],
        refused=[RefusedImage(index=one.index, code=one.code, detail=one.detail) for one in progress.refused],
    )


def image_of(subject_id: str, picture: SubjectPicture) -> Image:
    """The response for one of a subject's pictures."""
    address = f"/api/influencer/{quote(subject_id, safe='')}/images/{picture.id}/preview"
    preview_url = address if picture.has_preview else None
    values = asdict(picture) | {"preview_url": preview_url, "seen": _seen(picture.view)}
    return Image.model_validate(values)


def _seen(view: View | None) -> Seen | None:
    if view is None:
        return None
    left, top, right, bottom = (round(side, 1) for side in view.box)
    return Seen(
        left=left,
        top=top,
        width=round(right - left, 1),
        height=round(bottom - top, 1),
        trained_width=view.width,
        trained_height=view.height,
    )
