"""What the API says and hears, in camelCase, with an example of each."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from jobs.requests import Envelope
from notifications.preferences import EVENTS, MOST_CREDITS
from storage.tables import PictureState, Stage, Status
from training.spec import MAX_PICTURES, MIN_PICTURES, Backend, Family, TrainSpec


def _said_outside(told: Any, shared: Mapping[str, Any]) -> Any:
    """A schema with what it refers to put in place, and fields of groups by their names outside."""
    if isinstance(told, list):
        return [_said_outside(part, shared) for part in told]
    if not isinstance(told, dict):
        return told
    if "$ref" in told:
        told = shared[told["$ref"].rsplit("/", 1)[1]] | {key: part for key, part in told.items() if key != "$ref"}
    said = {
        key: _said_outside(part, shared) for key, part in told.items() if key != "title" or not isinstance(part, str)
    }
    if "properties" in said:
        said["properties"] = {to_camel(name): part for name, part in said["properties"].items()}
    return said


_SPEC = TrainSpec.model_json_schema()
_KNOWN = {
    **{name: _said_outside(told, _SPEC.get("$defs", {})) for name, told in _SPEC["properties"].items()},
    **Envelope.model_json_schema()["properties"],
}
_JOB, _PICTURE = "job_01m804w5gaakt0m1296p7r7xd8", "pic_01m804v1z0c4x9m3w7b2n5k8q6"


class Said(BaseModel):
    """An answer."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


def camel_keys(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` with keys as they are outside."""
    return {to_camel(key): told for key, told in value.items()}


# A group of the recipe's options, all of them; the request's schema says which there are.
Options = Annotated[dict[str, Any], AfterValidator(camel_keys)]


class Heard(BaseModel):
    """A request: a field that we do not know is a fault."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")


def _as_in_spec(name: str, description: str) -> Any:
    """A field that the recipe checks, not this model: so that all faults of a request are named at once."""
    schema = {key: told for key, told in _KNOWN[name].items() if key not in ("title", "default")}
    return Field(None, description=description, json_schema_extra=schema)


def inner_keys(group: str, given: Any) -> Any:
    """The options of a group of the recipe, as they came, by their names inside."""
    names = {to_camel(name): name for name in TrainSpec.model_fields[group].annotation.model_fields}  # type: ignore[union-attr]
    return {names.get(name, name): value for name, value in given.items()} if isinstance(given, dict) else given


# ---- trainings ------------------------------------------------------------------------------------------------


class TrainRequest(Heard):
    """What to train. Where it is silent, the subject's settings say it, then the family's recipe."""

    # Unknown fields are let in, to be named beside all other faults.
    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "baseModel": "sd15",
                "imageIds": [f"{_PICTURE[:-1]}{number}" for number in range(6)],
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
    base_model: Any = _as_in_spec("base_model", "`sd15`, `sdxl`, `z-image-turbo`, `z-image`, a path or a hub id.")
    family: Any = _as_in_spec("family", "For a folder or hub id: `sd15`, `sdxl` or `z-image`.")
    trigger_word: Any = _as_in_spec("trigger_word", "The word that will call the subject.")
    class_word: Any = _as_in_spec("class_word", "What the subject is: dog, woman, mug …")
    rank: Any = _as_in_spec("rank", "Size of the LoRA.")
    alpha: Any = _as_in_spec("alpha", "Its strength is alpha / rank.")
    learning_rate: Any = _as_in_spec("learning_rate", "Default: the family's; with prodigy 1.")
    optimizer: Any = _as_in_spec("optimizer", "`adamw`, `adamw8bit` or `prodigy`.")
    batch_size: Any = _as_in_spec("batch_size", "Pictures per step.")
    resolution: Any = _as_in_spec("resolution", "In pixels, a multiple of 64.")
    aspect_buckets: Any = _as_in_spec("aspect_buckets", "Keep shapes near the pictures' own.")
    epochs: Any = _as_in_spec("epochs", "How often each picture is seen.")
    max_steps: Any = _as_in_spec("max_steps", "Instead of epochs.")
    seed: Any = _as_in_spec("seed", "The same seed gives the same LoRA.")
    backend: Any = _as_in_spec("backend", "Who trains: `local` or `ai-toolkit`.")
    adapter: Any = _as_in_spec("adapter", "What the LoRA is attached to, and of which kind it is.")
    optimization: Any = _as_in_spec("optimization", "How the weights are moved.")
    objective: Any = _as_in_spec("objective", "What the loss asks for.")
    data: Any = _as_in_spec("data", "How pictures and captions are met.")
    validation: Any = _as_in_spec("validation", "What is looked at beside the training.")
    webhook_url: Any = _as_in_spec("webhook_url", "Base address that notices are sent to.")


class Spec(Said):
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


class Paid(Said):
    """Credits of a training."""

    held: int
    charged: int
    refunded: int


class Failure(Said):
    """Why a training ended without a LoRA."""

    code: str
    message: str | None


class UsedPicture(Said):
    """A picture of a training, by its place in `imageIds`."""

    position: int
    state: PictureState
    faults: list[str]


class LoraFile(Said):
    """The finished file."""

    sha256: str
    bytes: int


class Training(Said):
    """A training."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": _JOB,
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


class Lora(Said):
    """The newest finished LoRA of a subject, as a generator needs it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "trainingId": _JOB,
                "baseModel": "sd15",
                "family": "sd15",
                "triggerWord": "sks dog",
                "classWord": "dog",
                "strength": 1.0,
                "file": f"{_JOB}.safetensors",
                "sha256": "0eb2c8c278e0caeedd4be7ebf7a468f88dfc1b4de9ff05ebcf860e8181d29c1b",
                "bytes": 3297392,
                "url": f"/api/trainings/{_JOB}/file?expires=1795500000&signature=…",
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


class Trainings(Said):
    """The trainings of a subject."""

    latest: Training | None
    history: list[Training] = Field(description="The earlier ones, newest first.")


class Quoted(Said):
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


class Preview(Said):
    """A picture that a training made on its way."""

    name: str
    url: str


class Previews(Said):
    """Pictures that a training made on its way, oldest first."""

    previews: list[Preview]


# ---- subjects -------------------------------------------------------------------------------------------------


class SubjectSettings(Said):
    """How a subject is trained."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "trainAutomatically": True,
                "baseModel": "sd15",
                "triggerWord": "sks dog",
                "classWord": "dog",
                "webhookUrl": None,
            }
        }
    )

    train_automatically: bool
    base_model: str | None
    trigger_word: str | None
    class_word: str | None
    webhook_url: str | None


class SubjectChange(Heard):
    """What to change; what is not named stays, and null takes a value away."""

    model_config = ConfigDict(json_schema_extra={"example": {"trainAutomatically": True, "triggerWord": "sks dog"}})

    train_automatically: bool | None = None
    base_model: str | None = Field(None, max_length=300)
    trigger_word: str | None = Field(None, max_length=120)
    class_word: str | None = Field(None, max_length=120)
    webhook_url: str | None = Field(None, max_length=2000)


class ProfileSet(Said):
    """Whether a complete profile set started a training, and why not."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "started": False,
                "reason": "too_few_images",
                "message": "3 good pictures; a training takes at least 5",
                "training": None,
            }
        }
    )

    started: bool
    reason: str | None
    message: str | None
    training: Training | None


# ---- pictures -------------------------------------------------------------------------------------------------


class ImageAddresses(Heard):
    """Pictures to fetch: `url` or `urls`."""

    model_config = ConfigDict(json_schema_extra={"example": {"urls": ["https://pictures.example/rex1.jpg"]}})

    url: str | None = Field(None, max_length=4000)
    urls: list[str] | None = Field(None, min_length=1, max_length=20)


class Fault(Said):
    """What is wrong with a picture, as a word and in words."""

    code: str
    text: str


class Image(Said):
    """A stored picture of a subject."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": _PICTURE,
                "verdict": "bad",
                "faults": [{"code": "too_small", "text": "too small: 200 by 150 pixels"}],
                "caption": None,
                "width": 200,
                "height": 150,
                "bytes": 48211,
                "previewUrl": f"/api/influencer/rex/images/{_PICTURE}/preview",
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


class Images(Said):
    """The pictures of a subject."""

    images: list[Image]
    good: int = Field(description="How many a training could use.")
    needed: int = Field(MIN_PICTURES, description="How many good ones a training takes at least.")


class RefusedImage(Said):
    """A file or address of the request that was not stored, by its place in the request."""

    index: int
    code: str
    detail: str


class StoredImages(Said):
    """What became of the pictures of a request."""

    images: list[Image]
    refused: list[RefusedImage]


class ImageChange(Heard):
    """A new caption; null takes it away."""

    model_config = ConfigDict(json_schema_extra={"example": {"caption": "sks dog on a sofa"}})

    caption: str | None = Field(max_length=1000, pattern=r"^[^\x00]*$")


# ---- account --------------------------------------------------------------------------------------------------


class Entry(Said):
    """One movement of credits."""

    seq: int
    kind: Literal["grant", "hold", "settle", "release", "expire", "refund"]
    amount: int
    training_id: str | None
    created_at: datetime


class HoldNow(Said):
    """Credits reserved for a training that is not final."""

    training_id: str
    amount: int
    expires_at: datetime


class Account(Said):
    """An owner's credits."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "available": 940,
                "held": 60,
                "spent": 0,
                "granted": 1000,
                "holds": [{"trainingId": _JOB, "amount": 60, "expiresAt": "2026-11-29T10:00:00+00:00"}],
                "entries": [
                    {"seq": 2, "kind": "hold", "amount": 60, "trainingId": _JOB,
                     "createdAt": "2026-11-22T10:00:00+00:00"}
                ],
                "next": None,
            }
        }
    )  # fmt: skip

    available: int
    held: int
    spent: int
    granted: int
    holds: list[HoldNow]
    entries: list[Entry] = Field(description="Newest first.")
    next: int | None = Field(description="`before` of the next page; null on the last.")


# ---- from the inside ------------------------------------------------------------------------------------------


def training_of(view: Mapping[str, Any]) -> Training:
    """The answer for a job's public view."""
    return Training.model_validate({**view, "id": view["job_id"]})


class NoticesChange(Heard):
    """How the owner wants to be told by e-mail; what is not named stays, null takes it away."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"email": "ada@example.org", "events": ["training.failed"], "lowCredits": 50}}
    )

    email: str | None = Field(None, max_length=320)
    events: list[Literal[EVENTS]] | None = Field(None, description="Null: all but `training.processing`.")  # type: ignore[valid-type]
    low_credits: int | None = Field(None, ge=0, le=MOST_CREDITS, strict=True)


class Notices(Said):
    """How the owner is told by e-mail."""

    email: str | None = Field(description="Null: not at all.")
    events: list[str]
    low_credits: int | None = Field(description="Told once when fewer are available; null: never.")
