"""Trainings: the quote, the state, the finished LoRA and the previews."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from storage.tables.jobs import PictureState, Stage, Status
from training.spec import MAX_PICTURES, Backend, CaptionSource, Family, Learns
from web.models.common import JOB, PICTURE, Options, RequestModel, ResponseModel


class Spec(ResponseModel):
    """The recipe of a training, with all defaults filled in."""

    base_model: str
    family: Family
    trigger_word: str
    class_word: str
    captions: CaptionSource
    learns: Learns | None
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
    checkpoint_every: int
    keep_checkpoints: bool
    backend: Backend
    adapter: Options
    optimization: Options
    objective: Options
    data: Options
    validation: Options


class Paid(ResponseModel):
    """The credits of a training."""

    held: int
    charged: int
    refunded: int


class Failure(ResponseModel):
    """Why a training failed or was cancelled."""

    code: str
    message: str | None


class UsedPicture(ResponseModel):
    """A picture of a training; `position` is its index in `imageIds`, from 0."""

    position: int
    name: str | None = Field(description="The name of its file, if that is known.")
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
                "modelId": JOB,
                "subjectId": "rex",
                "status": "training",
                "stage": "train",
                "attempt": 1,
                "step": 120,
                "totalSteps": 600,
                "loss": 0.0912,
                "validationLoss": None,
                "secondsLeft": 118.5,
                "priority": "normal",
                "awaitsApproval": False,
                "review": False,
                "reviewUntil": None,
                "place": None,
                "expectedStart": None,
                "expectedEnd": "2026-11-22T10:04:00+00:00",
                "credits": {"held": 60, "charged": 0, "refunded": 0},
                "failure": None,
                "pictures": [],
                "notes": [],
                "lora": None,
                "trainSeconds": 0.0,
                "createdAt": "2026-11-22T10:00:00+00:00",
                "startedAt": "2026-11-22T10:00:01+00:00",
                "finishedAt": None,
                "reference": None,
                "spec": {
                    "baseModel": "sd15", "family": "sd15", "triggerWord": "sks dog", "classWord": "dog",
                    "captions": "given", "learns": None, "rank": 4, "alpha": 32.0, "learningRate": 0.0001,
                    "optimizer": "adamw", "batchSize": 1, "resolution": 512, "aspectBuckets": False, "epochs": 100,
                    "maxSteps": None, "seed": 7, "backend": "local", "checkpointEvery": 10, "keepCheckpoints": False,
                    "adapter": {}, "optimization": {}, "objective": {}, "data": {}, "validation": {},
                },
            }
        }
    )  # fmt: skip

    id: str
    model_id: str
    subject_id: str
    status: Status
    stage: Stage
    attempt: int
    step: int
    total_steps: int
    loss: float | None
    validation_loss: float | None = Field(description="The loss on the held-out pictures, if there are any.")
    seconds_left: float | None
    priority: Literal["low", "normal", "high"]
    awaits_approval: bool = Field(description="Whether it waits for an operator's approval first.")
    review: bool = Field(description="Whether it waits with its captions until you accept them.")
    review_until: datetime | None = Field(description="While it does: when it fails if you have not.")
    place: int | None = Field(description="While it waits for its turn: 1 is the next one.")
    expected_start: datetime | None = Field(
        description="When the training is expected to begin. Null once it has, or if no worker reports."
    )
    expected_end: datetime | None
    spec: Spec
    credits: Paid
    failure: Failure | None
    pictures: list[UsedPicture] = Field(description="Empty in lists.")
    notes: list[str] = Field(description="On pictures, captions and the trigger word, one line each.")
    lora: LoraFile | None
    train_seconds: float
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    reference: dict[str, Any] | None = Field(description="As the request had it.")


class ReviewedCaption(ResponseModel):
    """The caption of one picture of a training; `position` is its index in `imageIds`, from 0."""

    position: int
    name: str | None
    picture_id: str | None = Field(description="The stored picture, whose caption you can change.")
    caption: str | None = Field(description="Null: it is trained with the template.")


class Review(ResponseModel):
    """The captions that a training waits with."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "jobId": JOB,
                "until": "2026-11-25T10:00:00+00:00",
                "captions": [{"position": 0, "name": "rex1.jpg", "pictureId": PICTURE, "caption": "sks dog on a sofa"}],
            }
        }
    )

    job_id: str
    until: datetime = Field(description="When the training fails if you have not accepted them.")
    captions: list[ReviewedCaption]


class ReviewAccepted(RequestModel):
    """Accept the captions of a training."""

    model_config = ConfigDict(json_schema_extra={"example": {"captions": {"0": "sks dog on a sofa"}}})

    captions: dict[Annotated[int, Field(ge=0, lt=MAX_PICTURES)], Annotated[str, Field(max_length=1000)] | None] = Field(
        default_factory=dict,
        max_length=MAX_PICTURES,
        description="Other captions for this training, by the picture's position; null for the template.",
    )


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
    trigger_word: str = Field(description="Use it in the prompt.")
    class_word: str
    strength: float = Field(description="The strength to load it with; its scale is in the file.")
    file: str = Field(description="A unique name to save the file under.")
    sha256: str
    bytes: int
    url: str = Field(
        description="Address of the file, in this service or in the object store. Valid for 15 minutes, needs no token."
    )
    finished_at: datetime | None


class Trainings(ResponseModel):
    """The trainings of a subject."""

    latest: Training | None
    history: list[Training] = Field(description="The earlier ones, newest first.")


class Quoted(ResponseModel):
    """What a training would cost and how long it would take. Nothing was started."""

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
                "memoryGb": 6.4,
                "licence": "CreativeML OpenRAIL-M",
            }
        }
    )

    credits: int
    credits_per_step: float
    cancelled_half_way: int
    available: int
    steps: int
    seconds: float
    measured: bool = Field(description="Whether `seconds` is based on trainings that finished on this installation.")
    memory_gb: float | None = Field(
        description="The least GPU memory in GiB that a worker needs for it: with gradient checkpointing and a base "
        "model in 16 bits. null: it trains only on rented GPUs."
    )
    licence: str | None = Field(description="The licence of the base model, and what it forbids; null if unknown.")


class Preview(ResponseModel):
    """A picture that was drawn during a training."""

    name: str
    url: str


class Checkpoint(ResponseModel):
    """The LoRA as it was after some of its steps."""

    step: int
    sha256: str
    bytes: int
    url: str


class Checkpoints(ResponseModel):
    """The kept checkpoints of a training, by step."""

    checkpoints: list[Checkpoint]


class Previews(ResponseModel):
    """Pictures that were drawn during a training, oldest first."""

    previews: list[Preview]
