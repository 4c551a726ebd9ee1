"""A LoRA file on this machine to draw with: of a subject, or from any trainer."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.errors import LoraInvalid
from jobs.services import Services
from jobs.stages.stage_runner import work_dir
from jobs.subjects import loras
from jobs.subjects.loras import LoraView
from training.lora import inspect as lora_inspect


@dataclass(frozen=True)
class LoraWeights:
    """A LoRA file on this machine, with its trigger word and base model."""

    path: Path
    file: str  # a name that no other LoRA file has
    trigger_word: str
    base_model: str | None
    family: str | None
    contains: tuple[str, ...] = ()  # what is in it that Imprint does not read, and ComfyUI perhaps does


def inspect_weights(path: Path) -> LoraWeights:
    """Read a file from any trainer; what is known about it comes from its metadata. Raises LoraInvalid if it is broken.

    A sound file of another method or family is not refused: ComfyUI may know what Imprint does not.
    """
    report = lora_inspect.inspect(path)
    if report.problems:
        raise LoraInvalid(f"{path.name} is broken: {report.problems[0]}")
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-")[:80] or "lora"
    base_model = (report.recipe or {}).get("base_model")
    return LoraWeights(
        path,
        # Named by content: generators cache weights by file name, and would take new content for the old.
        f"{stem}-{report.sha256[:12]}.safetensors",
        report.trigger_word or "",
        base_model if isinstance(base_model, str) else None,
        report.family,
        tuple(report.contains),
    )


@contextmanager
def subject_weights(
    services: Services, owner_id: str, subject_id: str, base_model: str | None
) -> Iterator[LoraWeights]:
    """The newest ready LoRA of a subject, as a file that exists while the block runs. Raises LoraNotReady."""
    with stored_weights(services, loras.resolve(services, owner_id, subject_id, base_model)) as weights:
        yield weights


@contextmanager
def stored_weights(services: Services, found: LoraView) -> Iterator[LoraWeights]:
    """A LoRA of the object store, as a file that exists while the block runs."""
    with work_dir(services, found.job_id) as folder:
        path = folder / found.file
        services.store.get_file(found.key, path)
        yield LoraWeights(path, found.file, found.trigger_word, found.base_model, found.family)


def require_lora(weights: LoraWeights) -> None:
    """Raises LoraInvalid for a file that diffusers would load in part, or not at all."""
    if weights.contains:
        raise LoraInvalid(
            f"{weights.path.name} contains {', '.join(weights.contains)}; Imprint draws only with LoRA and DoRA of its "
            "families. Draw with it on a ComfyUI server (--comfyui)"
        )
