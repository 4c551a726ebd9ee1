"""Trainings: asked for, told of, quoted, drawn."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ConfigDict, Field

from storage.tables import PictureState, Stage, Status
from training.spec import MAX_PICTURES, MIN_PICTURES, Backend, Family
from web.models.common import JOB, PICTURE, Options, RequestModel, ResponseModel, as_in_spec


class TrainRequest(RequestModel):
    """What to train. Where it is silent, the subject's settings say it, then the family's recipe."""

    # Unknown fields are let in, to be named beside all other faults.
    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "baseModel": "sd15",
                "imageIds": [f"{PICTURE[:-1]}{number}" for number in range(6)],
                "triggerWord": "sks dog",
                "classWord": "dog",
            }
        },
    )

    image_ids: Any = Field(
        description="Stored pictures, in any order.",
        json_schema_extra={
            "type": "array",
            "items": {"type": "string", "maxLength": 200},
            "minItems": MIN_PICTURES,
            "maxItems": MAX_PICTURES,
        },
    )
    mask_ids: Any = Field(
        None,
        description="Stored masks, in the order of `imageIds`, null for a picture without one; with "
        "`objective.masked`.",
        json_schema_extra={
            "type": "array",
            "items": {"type": ["string", "null"], "maxLength": 200},
            "maxItems": MAX_PICTURES,
        },
    )
    base_model: Any = as_in_spec("base_model", "`sd15`, `sdxl`, `z-image-turbo`, `z-image`, a path or a hub id.")
    family: Any = as_in_spec("family", "For a folder or hub id: `sd15`, `sdxl` or `z-image`.")
    trigger_word: Any = as_in_spec("trigger_word", "The word that will call the subject.")
    class_word: Any = as_in_spec("class_word", "What the subject is: dog, woman, mug …")
    rank: Any = as_in_spec("rank", "Size of the LoRA.")
    alpha: Any = as_in_spec("alpha", "Its strength is alpha / rank.")
    learning_rate: Any = as_in_spec("learning_rate", "Default: the family's; with prodigy 1.")
    optimizer: Any = as_in_spec("optimizer", "`adamw`, `adamw8bit` or `prodigy`.")
    batch_size: Any = as_in_spec("batch_size", "Pictures per step.")
    resolution: Any = as_in_spec("resolution", "In pixels, a multiple of 64.")
    aspect_buckets: Any = as_in_spec("aspect_buckets", "Keep shapes near the pictures' own.")
    epochs: Any = as_in_spec("epochs", "How often each picture is seen.")
    max_steps: Any = as_in_spec("max_steps", "Instead of epochs.")
    seed: Any = as_in_spec("seed", "The same seed gives the same LoRA.")
    backend: Any = as_in_spec("backend", "Who trains: `local` or `ai-toolkit`.")
    adapter: Any = as_in_spec("adapter", "What the LoRA is attached to, and of which kind it is.")
    optimization: Any = as_in_spec("optimization", "How the weights are moved.")
    objective: Any = as_in_spec("objective", "What the loss asks for.")
    data: Any = as_in_spec("data", "How pictures and captions are met.")
    validation: Any = as_in_spec("validation", "What is looked at beside the training.")
    webhook_url: Any = as_in_spec("webhook_url", "Base address that notices are sent to.")


class Spec(ResponseModel):
    """The recipe of a training, filled in."""

    base_model: str
    family: Family
    trigger_word: str
    class_word: str
    rank: int
    alpha: float
    learning_rate: float
    optimizer: str
    batch_size: int
    resolution: int
    aspect_buckets: bool
    epochs: int
    max_steps: int | None
    seed: int
    backend: Backend
    adapter: Options
    optimization: Options
    objective: Options
    data: Options
    validation: Options


class Paid(ResponseModel):
    """Credits of a training."""

    held: int
    charged: int
    refunded: int


class Failure(ResponseModel):
    """Why a training ended without a LoRA."""

    code: str
    message: str | None


class UsedPicture(ResponseModel):
    """A picture of a training, by its place in `imageIds`."""

    position: int
    state: PictureState
    faults: list[str]


class LoraFile(ResponseModel):
    """The finished file."""

    sha256: str
    bytes: int


class Training(ResponseModel):
    """A training."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": JOB,
                "subjectId": "rex",
                "status": "training",
                "stage": "train",
                "attempt": 1,
                "step": 120,
                "totalSteps": 600,
                "loss": 0.0912,
                "validationLoss": None,
                "secondsLeft": 118.5,
                "credits": {"held": 60, "charged": 0, "refunded": 0},
                "failure": None,
                "pictures": [],
                "lora": None,
                "trainSeconds": 0.0,
                "createdAt": "2026-11-22T10:00:00+00:00",
                "startedAt": "2026-11-22T10:00:01+00:00",
                "finishedAt": None,
                "spec": {
                    "baseModel": "sd15", "family": "sd15", "triggerWord": "sks dog", "classWord": "dog", "rank": 4,
                    "alpha": 32.0, "learningRate": 0.0001, "optimizer": "adamw", "batchSize": 1, "resolution": 512,
                    "aspectBuckets": False, "epochs": 100, "maxSteps": None, "seed": 7, "backend": "local",
                    "adapter": {}, "optimization": {}, "objective": {}, "data": {}, "validation": {},
                },
            }
        }
    )  # fmt: skip

    id: str
    subject_id: str
    status: Status
    stage: Stage
    attempt: int
    step: int
    total_steps: int
    loss: float | None
    validation_loss: float | None = Field(description="On the held-out pictures, where there are any.")
    seconds_left: float | None
    spec: Spec
    credits: Paid
    failure: Failure | None
    pictures: list[UsedPicture] = Field(description="Empty in lists.")
    lora: LoraFile | None
    train_seconds: float
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Lora(ResponseModel):
    """The newest finished LoRA of a subject, as a generator needs it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "trainingId": JOB,
                "baseModel": "sd15",
                "family": "sd15",
                "triggerWord": "sks dog",
                "classWord": "dog",
                "strength": 1.0,
                "file": f"{JOB}.safetensors",
                "sha256": "0eb2c8c278e0caeedd4be7ebf7a468f88dfc1b4de9ff05ebcf860e8181d29c1b",
                "bytes": 3297392,
                "url": f"/api/trainings/{JOB}/file?expires=1795500000&signature=…",
                "finishedAt": "2026-11-22T10:04:11Z",
            }
        }
    )

    training_id: str
    base_model: str
    family: Family
    trigger_word: str = Field(description="Say it in the prompt.")
    class_word: str
    strength: float = Field(description="To load it at; its own scale is in the file.")
    file: str = Field(description="A name that no other LoRA has, to keep it under.")
    sha256: str
    bytes: int
    url: str = Field(description="Good for 15 minutes, without a token; of this service, or of the object store.")
    finished_at: datetime | None


class Trainings(ResponseModel):
    """The trainings of a subject."""

    latest: Training | None
    history: list[Training] = Field(description="The earlier ones, newest first.")


class Quoted(ResponseModel):
    """What a training would cost, and how long it would take. Nothing was started."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "credits": 60,
                "creditsPerStep": 0.1,
                "cancelledHalfWay": 30,
                "available": 1000,
                "steps": 600,
                "seconds": 150.0,
                "measured": False,
            }
        }
    )

    credits: int
    credits_per_step: float
    cancelled_half_way: int
    available: int
    steps: int
    seconds: float
    measured: bool = Field(description="Whether `seconds` comes from trainings that ended here.")


class Preview(ResponseModel):
    """A picture that a training made on its way."""

    name: str
    url: str


class Previews(ResponseModel):
    """Pictures that a training made on its way, oldest first."""

    previews: list[Preview]


def training_of(view: Mapping[str, Any]) -> Training:
    """The answer for a job's public view."""
    return Training.model_validate({**view, "id": view["job_id"]})
