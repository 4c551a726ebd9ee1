"""Trainings: the request, the quote, the state, the finished LoRA and the previews."""

from datetime import datetime
from typing import Any

from pydantic import ConfigDict, Field

from storage.tables import PictureState, Stage, Status
from training.families.registry import BASE_MODELS
from training.spec import MAX_PICTURES, MIN_PICTURES, Backend, Family
from web.models.common import JOB, PICTURE, Options, RequestModel, ResponseModel, as_in_spec


class Recipe(RequestModel):
    """How to train. Fields that are left out come from the family's recipe."""

    # Unknown fields are accepted here, so that the answer names them together with all other faults.
    model_config = ConfigDict(extra="allow", json_schema_extra={"example": {"maxSteps": 1500, "resolution": 768}})

    rank: Any = as_in_spec("rank", "The rank of the LoRA.")
    alpha: Any = as_in_spec("alpha", "The LoRA is scaled by alpha / rank.")
    learning_rate: Any = as_in_spec("learning_rate", "Default: the family's; 1 with prodigy.")
    optimizer: Any = as_in_spec("optimizer", "`adamw`, `adamw8bit` or `prodigy`.")
    batch_size: Any = as_in_spec("batch_size", "Pictures per step.")
    resolution: Any = as_in_spec("resolution", "In pixels, a multiple of 64.")
    aspect_buckets: Any = as_in_spec("aspect_buckets", "Train at aspect ratios near those of the pictures.")
    epochs: Any = as_in_spec("epochs", "How often each picture is used.")
    max_steps: Any = as_in_spec("max_steps", "The number of steps; replaces `epochs`.")
    checkpoint_every: Any = as_in_spec("checkpoint_every", "Epochs between checkpoints.")
    keep_checkpoints: Any = as_in_spec("keep_checkpoints", "Keep the LoRA file of every checkpoint.")
    seed: Any = as_in_spec("seed", "The same seed gives the same LoRA.")
    backend: Any = as_in_spec("backend", "Where it is trained: `local` or `ai-toolkit`.")
    adapter: Any = as_in_spec("adapter", "The kind of adapter, and the layers that get one.")
    optimization: Any = as_in_spec("optimization", "Optimizer and learning-rate schedule.")
    objective: Any = as_in_spec("objective", "The loss.")
    data: Any = as_in_spec("data", "How pictures and captions are used.")
    validation: Any = as_in_spec("validation", "Validation loss and previews during the training.")


class TrainRequest(Recipe):
    """What to train. Fields that are left out come from the subject's settings, then from the family's recipe."""

    model_config = ConfigDict(
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
        description="Stored masks, in the order of `imageIds`; null for a picture without one. Needs "
        "`objective.masked`.",
        json_schema_extra={
            "type": "array",
            "items": {"type": ["string", "null"], "maxLength": 200},
            "maxItems": MAX_PICTURES,
        },
    )
    base_model: Any = as_in_spec("base_model", f"{', '.join(f'`{name}`' for name in BASE_MODELS)}, a path or a hub id.")
    family: Any = as_in_spec("family", "Needed for a folder or hub id.")
    trigger_word: Any = as_in_spec(
        "trigger_word",
        "The word that stands for the subject in prompts. Default: the subject's; a subject without one gets one that "
        "is derived from its id.",
    )
    class_word: Any = as_in_spec("class_word", "What the subject is: dog, woman, mug …")
    webhook_url: Any = as_in_spec("webhook_url", "Base address for webhooks.")
    on_end: Any = as_in_spec(
        "on_end", "A Celery task of your application that gets the final view of the job. Not with every token."
    )
    model_id: Any = as_in_spec(
        "model_id", "The id of the model in webhooks and in the key of its file; must be unused."
    )
    model_link: Any = as_in_spec("model_link", "Whether the last webhook has an address that needs no credentials.")
    reference: Any = as_in_spec("reference", "A small object that webhooks repeat.")
    allow_missing: Any = as_in_spec("allow_missing", "Train without pictures that stay unreachable.")


class Spec(ResponseModel):
    """The recipe of a training, with all defaults filled in."""

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
                "credits": {"held": 60, "charged": 0, "refunded": 0},
                "failure": None,
                "pictures": [],
                "lora": None,
                "trainSeconds": 0.0,
                "createdAt": "2026-11-22T10:00:00+00:00",
                "startedAt": "2026-11-22T10:00:01+00:00",
                "finishedAt": None,
                "reference": None,
                "spec": {
                    "baseModel": "sd15", "family": "sd15", "triggerWord": "sks dog", "classWord": "dog", "rank": 4,
                    "alpha": 32.0, "learningRate": 0.0001, "optimizer": "adamw", "batchSize": 1, "resolution": 512,
                    "aspectBuckets": False, "epochs": 100, "maxSteps": None, "seed": 7, "backend": "local",
                    "checkpointEvery": 10, "keepCheckpoints": False,
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
    spec: Spec
    credits: Paid
    failure: Failure | None
    pictures: list[UsedPicture] = Field(description="Empty in lists.")
    lora: LoraFile | None
    train_seconds: float
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    reference: dict[str, Any] | None = Field(description="As the request had it.")


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
