"""Drawing with a finished LoRA: on a ComfyUI server, or with diffusers on this machine."""

import hashlib
import io
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from core.errors import GeneratorError, LoraInvalid, SpecInvalid
from core.names import OwnerName
from core.numbers import NumbersAreNotBools
from generation.comfyui import draw as comfyui
from generation.comfyui.delivery import install_lora
from generation.comfyui.follow import OnProgress
from generation.comfyui.patch import WorkflowLora
from generation.comfyui.prompts import contains_word
from generation.comfyui.server import ComfyUIServer, open_comfyui_client
from jobs import keys
from jobs.requests.training_request import Name
from jobs.services import Services
from jobs.stages.stage_runner import work_dir
from jobs.subjects import loras
from jobs.view import View
from training.lora import formats as lora_formats
from training.lora import inspect as lora_inspect
from training.spec import BASE_MODELS, base_model_location

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORM = {"sd15": "kohya", "sdxl": "kohya", "z-image": "comfyui"}  # what ComfyUI loads whole
_URL_S = 15 * 60


@dataclass(frozen=True)
class LoraWeights:
    """A LoRA file on this machine, with its trigger word and base model."""

    path: Path
    file: str  # a name that no other LoRA file has
    trigger_word: str
    base_model: str | None
    family: str | None


def inspect_weights(path: Path) -> LoraWeights:
    """Read a LoRA file from any trainer; what is known about it comes from its metadata. Raises LoraInvalid."""
    report = lora_inspect.inspect(path)
    if report.problems:
        raise LoraInvalid(f"{path.name} is not a valid LoRA file: {report.problems[0]}")
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-")[:80] or "lora"
    base_model = (report.recipe or {}).get("base_model")
    return LoraWeights(
        path,
        # Named by content: generators cache weights by file name, and would take new content for the old.
        f"{stem}-{report.sha256[:12]}.safetensors",
        report.trigger_word or "",
        base_model if isinstance(base_model, str) else None,
        report.family,
    )


@contextmanager
def subject_weights(
    services: Services, owner_id: str, subject_id: str, base_model: str | None
) -> Iterator[LoraWeights]:
    """The newest ready LoRA of a subject, as a file that exists while the block runs. Raises LoraNotReady."""
    found = loras.resolve(services, owner_id, subject_id, base_model)
    with work_dir(services, found.job_id) as folder:
        path = folder / found.file
        services.store.get_file(found.key, path)
        yield LoraWeights(path, found.file, found.trigger_word, found.base_model, found.family)


# ---- on ComfyUI -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComfyUITarget:
    """A ComfyUI server, and the path of its models/loras on this machine; None: files are sent by its assets API."""

    url: str
    loras: Path | None = None
    timeout_s: float = 600.0


def comfyui_target(services: Services) -> ComfyUITarget:
    """The server in the settings. Raises GeneratorError if there is none."""
    settings = services.settings
    if settings.comfyui_url is None:
        raise GeneratorError("no ComfyUI server is configured: set IMPRINT_COMFYUI_URL")
    return ComfyUITarget(settings.comfyui_url.get_secret_value(), settings.comfyui_loras, settings.comfyui_timeout_s)


def draw_on_comfyui(
    where: ComfyUITarget,
    workflow: Any,
    weights: LoraWeights | None,
    *,
    strength: float = loras.STRENGTH,
    trigger_word: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    report: OnProgress = lambda _: None,
    **more: Any,
) -> comfyui.Drawing:
    """Send the weights to a server and draw a workflow with them; `more` is passed to `generation.comfyui.draw`.

    A file that ComfyUI would load only in part is converted first. `say` is called with each step. Raises
    WorkflowInvalid and GeneratorError.
    """
    with open_comfyui_client() as http, tempfile.TemporaryDirectory(prefix="imprint-") as folder:
        server, lora = ComfyUIServer(where.url, http), None
        if weights is not None:
            ready = _loadable(weights, Path(folder), say)
            say(f"sending {ready.file} to {where.url}")
            listed = install_lora(server, ready.path, ready.file, folder=where.loras)
            word = ready.trigger_word if trigger_word is None else trigger_word
            lora = WorkflowLora(listed, word, strength)
        say("drawing")
        return comfyui.draw(server, workflow, lora, timeout_s=where.timeout_s, report=report, **more)


def _loadable(weights: LoraWeights, folder: Path, say: Callable[[str], None]) -> LoraWeights:
    """The weights in a format that ComfyUI loads completely: as they are, or a converted copy in `folder`."""
    report = lora_inspect.inspect(weights.path)
    how = report.readers.get("ComfyUI", "whole")
    if how == "whole" or report.family not in _FORM:
        return weights
    form = _FORM[report.family]
    say(f"ComfyUI reads {report.format} keys of {report.family} {how}: converted to {form}")
    path = folder / weights.path.name
    path.write_bytes(lora_formats.serialize_as(lora_formats.read_lora(weights.path), form))
    return replace(weights, path=path, file=inspect_weights(path).file)


# ---- the task of applications ----------------------------------------------------------------------------------


class DrawingRequest(NumbersAreNotBools):
    """The arguments of the task."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    owner_id: OwnerName
    subject_id: Name
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


def generate(services: Services, arguments: Mapping[str, Any], key: str) -> DrawingResult:
    """Draw with the newest LoRA of a subject on the operator's ComfyUI, and store the pictures in the object store.

    The same key draws once. Raises SpecInvalid, LoraNotReady, WorkflowInvalid and GeneratorError.
    """
    asked, where = _validate(arguments), comfyui_target(services)
    with subject_weights(services, asked.owner_id, asked.subject_id, asked.base_model) as weights:
        done = draw_on_comfyui(
            where, asked.workflow, weights, strength=asked.strength, prompt=asked.prompt, seed=asked.seed, key=key
        )
    prefix = keys.drawing(hashlib.sha256(key.encode()).hexdigest()[:32])
    return DrawingResult(
        job_id=weights.file.removesuffix(".safetensors"),
        prompt_id=done.prompt_id,
        pictures=[
            _store_picture(services, f"{prefix}{number:03d}", *made) for number, made in enumerate(done.pictures)
        ],
    )


def _validate(arguments: Mapping[str, Any]) -> DrawingRequest:
    try:
        return DrawingRequest.model_validate(dict(arguments))
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

# Default steps, guidance and size: those of each family's authors.
_DEFAULTS = {"sd15": (25, 7.5, 512), "sdxl": (30, 5.0, 1024), "z-image": (9, 0.0, 1024)}


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
    base_model = how.base_model or (weights.base_model if weights else None)
    if base_model is None:
        raise SpecInvalid.of({"base_model": "the LoRA file does not say which base model it was trained on; give one"})
    named = BASE_MODELS.get(base_model)
    family = how.family or (named.family if named else None) or (weights.family if weights else None)
    if family not in _DEFAULTS:
        raise SpecInvalid.of({"family": f"give the family of the base model: {', '.join(_DEFAULTS)}"})
    location = base_model_location(base_model, services.settings.base_models)
    steps, guidance, side = _DEFAULTS[family]
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
        steps=how.steps or steps,
        guidance=guidance if how.guidance is None else how.guidance,
        size=how.size or (side, side),
        device=how.device,
    )
    return [_png(picture) for picture in pictures]


def _png(picture: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
