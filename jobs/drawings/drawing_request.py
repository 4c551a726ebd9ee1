"""What a drawing may ask for, and what it costs."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from core.errors import SpecInvalid
from core.names import OwnerName
from core.numbers import NumbersAreNotBools
from core.settings import Settings
from credits.price import price_of_drawing
from generation.comfyui.prompts import contains_word
from jobs.requests.envelope import SubjectName
from jobs.requests.prices import drawing_rate_of
from jobs.subjects.drawing import drawing_defaults
from storage.tables.drawings import DrawingRow
from training.spec import TrainSpec, base_model_location

MAX_PROMPT, MAX_SEED, MAX_COUNT = 1000, 2**32 - 1, 8
_Side = Annotated[int, Field(ge=64, le=2048, multiple_of=8)]


class DrawingRequest(NumbersAreNotBools):
    """The fields of a drawing. The training is named by `job_id`, or as the newest ready one of a subject."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    owner_id: OwnerName
    job_id: Annotated[str, StringConstraints(pattern=r"^job_[0-9a-z]{1,40}$")] | None = None
    subject_id: SubjectName | None = None
    base_model: Annotated[str, StringConstraints(min_length=1, max_length=300)] | None = None
    prompt: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_PROMPT, pattern=r"^[^\x00]*$")
    ]
    strength: float = Field(1.0, ge=-2, le=2)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    count: int = Field(1, ge=1, le=MAX_COUNT)
    compare: bool = False
    steps: int | None = Field(None, ge=1, le=100)
    guidance: float | None = Field(None, ge=0, le=30)
    width: _Side | None = None
    height: _Side | None = None
    idempotency_key: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None

    @property
    def sha256(self) -> str:
        """Identifies the request: the same key with another request is refused."""
        fields = self.model_dump(mode="json", exclude={"idempotency_key"})
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class DrawingPlan:
    """A drawing of one training with all its values, and its price in credits."""

    family: str
    base_model: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    width: int
    height: int
    total_steps: int
    credits: int


def parse(arguments: Mapping[str, Any]) -> DrawingRequest:
    """Raises SpecInvalid with every fault."""
    try:
        request = DrawingRequest.model_validate(dict(arguments))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[:20]
        faults = {ascii(fault["loc"][0])[1:-1][:60]: fault["msg"].removeprefix("Value error, ") for fault in found}
        raise SpecInvalid.of(faults) from None
    if (request.job_id is None) == (request.subject_id is None):
        raise SpecInvalid.of({"job_id": "name either the training or its subject"})
    if request.job_id is not None and request.base_model is not None:
        raise SpecInvalid.of({"base_model": "cannot be chosen with job_id: it is the base model of that training"})
    return request


def plan(request: DrawingRequest, spec: TrainSpec, settings: Settings) -> DrawingPlan:
    """Fill in what the request leaves open: a random seed, the values of the family, the size of the training."""
    location = base_model_location(spec.base_model, settings.base_models)
    usual = drawing_defaults(spec.family, spec.base_model, location)
    word = spec.trigger_word
    steps = request.steps or usual.steps
    width, height = request.width or spec.resolution, request.height or spec.resolution
    total = steps * request.count * (2 if request.compare else 1)
    return DrawingPlan(
        family=spec.family,
        base_model=spec.base_model,
        prompt=request.prompt if contains_word(word, request.prompt) else f"{word}, {request.prompt}",
        seed=secrets.randbits(32) if request.seed is None else request.seed,
        steps=steps,
        guidance=usual.guidance if request.guidance is None else request.guidance,
        width=width,
        height=height,
        total_steps=total,
        credits=price_of_drawing(drawing_rate_of(spec.family, settings), total, (width, height)),
    )


def size_of(row: DrawingRow) -> tuple[int, int]:
    """Width and height of a drawing's pictures."""
    return row.width, row.height
