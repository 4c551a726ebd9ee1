"""Drawings with the LoRA of a training."""

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from jobs.drawings.drawing_request import MAX_COUNT, MAX_PROMPT, MAX_SEED, DrawingPlan
from jobs.drawings.drawing_view import DrawingView
from storage.tables.drawings import DrawingStatus
from web.models.common import JOB, RequestModel, ResponseModel
from web.models.trainings import Failure, Paid

DRAWING = "draw_01m804zq3f8k2x6v9w1b4n7c5d"


class DrawRequest(RequestModel):
    """What to draw with the LoRA of a training."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"prompt": "on a beach", "strength": 0.8, "seed": 7, "compare": True}}
    )

    prompt: Annotated[
        str,
        StringConstraints(min_length=1, max_length=MAX_PROMPT, pattern=r"^[^\x00]*$"),
    ] = Field(description="The trigger word is put before it if it is not in it.")
    strength: float = Field(1.0, ge=-2, le=2, description="1.0 is what the LoRA was trained for.")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Of the first picture; each further one has the next. Null: random."
    )
    count: int = Field(1, ge=1, le=MAX_COUNT, description="How many pictures, each with a seed of its own.")
    compare: bool = Field(False, description="Whether to draw each seed without the LoRA too.")
    steps: int | None = Field(None, ge=1, le=100, description="Null: the usual number for the base model.")
    guidance: float | None = Field(None, ge=0, le=30, description="Null: the usual scale for the base model.")
    width: int | None = Field(
        None, ge=64, le=2048, multiple_of=8, description="In pixels. Null: the resolution of the training."
    )
    height: int | None = Field(None, ge=64, le=2048, multiple_of=8, description="As `width`.")


class DrawnImage(ResponseModel):
    """A picture that is drawn."""

    number: int = Field(description="From 0, in the order of drawing.")
    seed: int
    with_lora: bool
    sha256: str
    bytes: int
    url: str


class Drawing(ResponseModel):
    """A drawing. Ask again until its status is `ready`, `failed` or `cancelled`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": DRAWING,
                "trainingId": JOB,
                "status": "drawing",
                "step": 31,
                "totalSteps": 50,
                "prompt": "sks dog, on a beach",
                "strength": 0.8,
                "seed": 7,
                "count": 1,
                "compare": True,
                "steps": 25,
                "guidance": 7.5,
                "width": 512,
                "height": 512,
                "baseModel": "sd15",
                "credits": {"held": 3, "charged": 0, "refunded": 0},
                "failure": None,
                "images": [
                    {
                        "number": 0,
                        "seed": 7,
                        "withLora": True,
                        "sha256": "0eb2c8c278e0caeedd4be7ebf7a468f88dfc1b4de9ff05ebcf860e8181d29c1b",
                        "bytes": 402113,
                        "url": f"/api/drawings/{DRAWING}/images/0",
                    }
                ],
                "createdAt": "2026-11-22T10:05:00+00:00",
                "startedAt": "2026-11-22T10:05:01+00:00",
                "finishedAt": None,
            }
        }
    )

    id: str
    training_id: str
    status: DrawingStatus
    step: int = Field(description="Of all images together.")
    total_steps: int
    prompt: str = Field(description="With the trigger word.")
    strength: float
    seed: int
    count: int
    compare: bool
    steps: int = Field(description="Of one image.")
    guidance: float
    width: int
    height: int
    base_model: str
    credits: Paid
    failure: Failure | None
    images: list[DrawnImage] = Field(description="The images that are drawn already.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Drawings(ResponseModel):
    """The drawings of a training, newest first."""

    drawings: list[Drawing]


class DrawingPrice(ResponseModel):
    """What a drawing would cost. Nothing was started."""

    model_config = ConfigDict(json_schema_extra={"example": {"credits": 3, "totalSteps": 50}})

    credits: int
    total_steps: int


def drawing_of(view: DrawingView) -> Drawing:
    """The response for a drawing."""
    here = f"/api/drawings/{view.drawing_id}/images"
    images = [DrawnImage(**one.model_dump(exclude={"key"}), url=f"{here}/{one.number}") for one in view.pictures]
    copied = {name: getattr(view, name) for name in Drawing.model_fields if name != "images"}
    return Drawing.model_validate(copied | {"images": images})


def price_of(plan: DrawingPlan) -> DrawingPrice:
    """The response for a price."""
    return DrawingPrice(credits=plan.credits, total_steps=plan.total_steps)
