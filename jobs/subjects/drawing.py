"""Drawing with a finished LoRA: the task of applications on the operator's ComfyUI, and diffusers on this machine."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from core.errors import SpecInvalid
from core.names import OwnerName
from core.numbers import NumbersAreNotBools
from generation.comfyui.follow import OnProgress
from generation.comfyui.prompts import contains_word
from jobs import keys
from jobs.deletion import guard
from jobs.requests.envelope import SubjectName
from jobs.services import Services
from jobs.subjects import loras
from jobs.subjects.comfyui_drawing import ComfyUITarget, cancel_drawing, comfyui_target, draw_on_comfyui
from jobs.subjects.lora_weights import LoraWeights, require_lora, subject_weights
from jobs.turns import owner_slot
from jobs.view import View
from storage.database import insert_if_absent
from storage.tables.deletions import StoredDrawing
from training.base_family import family_of_base
from training.families.record import Drawing
from training.families.registry import BASE_MODELS, FAMILIES, trained_here
from training.spec import base_model_location, is_distilled

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_URL_S = 15 * 60


# ---- the task of applications ----------------------------------------------------------------------------------


class WorkflowRequest(NumbersAreNotBools):
    """The arguments of the task."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    owner_id: OwnerName
    subject_id: SubjectName
    workflow: dict[str, Any]
    base_model: Annotated[str, StringConstraints(min_length=1, max_length=300)] | None = None
    prompt: Annotated[str, StringConstraints(max_length=4000, pattern=r"^[^\x00]*$")] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    strength: float = Field(loras.STRENGTH, ge=-10, le=10)


class DrawnPicture(View):
    """A drawn picture in the object store, and an address that is valid for 15 minutes."""

    key: str
    bytes: int
    sha256: str
    url: str


class DrawingResult(View):
    """The pictures that a workflow drew."""

    job_id: str
    prompt_id: str
    pictures: list[DrawnPicture]
    notes: list[str]  # what to know of the result: what ComfyUI did not load, what the server cannot say


def generate(
    services: Services, arguments: Mapping[str, Any], key: str, report: OnProgress = lambda _: None
) -> DrawingResult:
    """Draw with the newest LoRA of a subject on the operator's ComfyUI, and store the pictures in the object store.

    The same key draws once. Raises SpecInvalid, LoraNotReady, WorkflowInvalid and GeneratorError; RetryLater if the
    owner's other work takes its share of this worker.
    """
    asked, where = _validate(arguments), comfyui_target(services)
    with owner_slot(services, asked.owner_id):
        return _generate(services, asked, where, key, report)


def check(arguments: Mapping[str, Any]) -> None:
    """Raises SpecInvalid for invalid arguments of `generate`."""
    _validate(arguments)


def cancel(services: Services, key: str) -> bool:
    """Cancel the drawing with this key; False if ComfyUI does not draw it now. Raises GeneratorError."""
    return cancel_drawing(comfyui_target(services), key)


def _generate(
    services: Services, asked: WorkflowRequest, where: ComfyUITarget, key: str, report: OnProgress
) -> DrawingResult:
    with subject_weights(services, asked.owner_id, asked.subject_id, asked.base_model) as weights:
        done = draw_on_comfyui(
            where, asked.workflow, weights, strength=asked.strength, prompt=asked.prompt, seed=asked.seed, key=key,
            report=report,
        )  # fmt: skip
    drawing_id = hashlib.sha256(key.encode()).hexdigest()[:32]
    job_id = weights.file.removesuffix(".safetensors")
    _record(services, StoredDrawing(
        id=drawing_id, owner_id=asked.owner_id, subject_id=asked.subject_id, job_id=job_id, task_id=key
    ))  # fmt: skip
    prefix = keys.drawing(drawing_id)
    return DrawingResult(
        job_id=job_id,
        prompt_id=done.prompt_id,
        pictures=[
            _store_picture(services, f"{prefix}{number:03d}", *made) for number, made in enumerate(done.pictures)
        ],
        notes=done.notes,
    )


def _record(services: Services, drawing: StoredDrawing) -> None:
    """Record whose pictures these are, before they are stored: a deletion finds them by this."""
    with services.database.writing() as session:
        guard.lock_owner(session, drawing.owner_id)
        guard.refuse_if_deleting(session, drawing.owner_id, drawing.subject_id)
        insert_if_absent(session, drawing)


def _validate(arguments: Mapping[str, Any]) -> WorkflowRequest:
    try:
        return WorkflowRequest.model_validate(dict(arguments))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[:20]
        faults = {ascii(fault["loc"][0])[1:-1][:60]: fault["msg"].removeprefix("Value error, ") for fault in found}
        raise SpecInvalid.of(faults) from None


def _store_picture(services: Services, stem: str, name: str, data: bytes) -> DrawnPicture:
    suffix = Path(name).suffix.lower()
    key = stem + (suffix if suffix in _SUFFIXES else ".bin")
    services.store.put(key, data)
    sha256 = hashlib.sha256(data).hexdigest()
    return DrawnPicture(key=key, bytes=len(data), sha256=sha256, url=services.store.url(key, _URL_S))


# ---- with diffusers ----------------------------------------------------------------------------------------------


def drawing_defaults(family: str, *names: str) -> Drawing:
    """How a base model is drawn with if nobody says otherwise. `names`: of the base model, and where it is."""
    record = FAMILIES[family]
    return record.few_steps if record.few_steps is not None and is_distilled(*names) else record.drawing


@dataclass(frozen=True)
class LocalDrawing:
    """How to draw on this machine; None is the family's default."""

    prompt: str
    seeds: tuple[int, ...]
    base_model: str | None = None  # None: the one that the LoRA was trained on
    family: str | None = None
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None
    device: str = "auto"


def draw_locally(
    services: Services, how: LocalDrawing, weights: LoraWeights | None, *, strength: float, trigger_word: str | None
) -> list[bytes]:
    """Draw one PNG for each seed. Imports torch. Raises SpecInvalid, BaseModelUnavailable, LoraInvalid."""
    if weights is not None:
        require_lora(weights)
    base_model = how.base_model or (weights.base_model if weights else None)
    if base_model is None:
        raise SpecInvalid.of({"base_model": "the LoRA file does not say which base model it was trained on; give one"})
    location = base_model_location(base_model, services.settings.base_models)
    named = BASE_MODELS.get(base_model)
    of_base = (named.family if named else None) or family_of_base(location)
    family = how.family or of_base or (weights.family if weights else None)
    if family not in FAMILIES:
        raise SpecInvalid.of({"family": f"give the family of the base model: {', '.join(FAMILIES)}"})
    if family not in trained_here():
        raise SpecInvalid.of({"family": f"{family} is not drawn with on this machine: draw in ComfyUI"})
    if weights is not None and weights.family is not None and weights.family != family:
        raise SpecInvalid.of({"base_model": f"{base_model} is of family {family}, but the LoRA is of {weights.family}"})
    defaults = drawing_defaults(family, base_model, location)
    word = (weights.trigger_word if weights else "") if trigger_word is None else trigger_word
    prompt = how.prompt if not word or contains_word(word, how.prompt) else f"{word}, {how.prompt}"
    from training.sample import draw  # torch takes seconds to import, so errors are found first

    pictures = draw(
        location,
        family,
        [prompt] * len(how.seeds),
        how.seeds,
        lora=weights.path if weights else None,
        strength=strength,
        steps=how.steps or defaults.steps,
        guidance=defaults.guidance if how.guidance is None else how.guidance,
        size=how.size or (defaults.side, defaults.side),
        device=how.device,
    )
    return [_png(picture) for picture in pictures]


def _png(picture: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
