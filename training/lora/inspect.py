"""Inspect a LoRA file: family, format, scale, strength, problems and the programs that load it. Without torch."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.lora import file as lora_file
from training.lora.formats import Module, ParsedLora, read_lora
from training.lora.names import kind_of
from training.lora.safetensor import Tensor, data_offset

_FLOATS = ("F64", "F32", "F16", "BF16")
_SHOWN = 5  # problems of one kind that are listed one by one

# Which programs load which format in full. ComfyUI only logs keys that it does not know, so a file may seem to work.
_READERS: dict[tuple[str, bool], dict[str, str]] = {
    ("kohya", False): {"diffusers": "whole", "ComfyUI": "whole", "AUTOMATIC1111": "whole"},
    ("kohya", True): {"diffusers": "no", "ComfyUI": "no", "AUTOMATIC1111": "no"},
    ("peft", False): {"diffusers": "whole", "ComfyUI": "in part, silently", "AUTOMATIC1111": "no"},
    ("peft", True): {"diffusers": "whole", "ComfyUI": "whole", "AUTOMATIC1111": "no"},
    ("comfyui", True): {"diffusers": "whole", "ComfyUI": "whole", "AUTOMATIC1111": "no"},
    ("comfyui", False): {"diffusers": "not surely", "ComfyUI": "whole", "AUTOMATIC1111": "no"},
}


@dataclass
class InspectionReport:
    """The result of an inspection, as printed by `imprint inspect --json`."""

    size_bytes: int
    sha256: str
    format: str
    family: str | None
    modules: int
    parameters: int
    ranks: list[int]
    alphas: list[float]
    scales: list[float]
    precision: list[str]
    is_dora: bool
    kinds: dict[str, dict[str, Any]]  # by kind of module: count, ranks, scales, norms
    trigger_word: str | None
    recipe: dict[str, Any] | None
    readers: dict[str, str]
    problems: list[str] = field(default_factory=list)  # the file is broken
    warnings: list[str] = field(default_factory=list)  # the file works, but perhaps not as expected
    metadata: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def inspect(path: Path | bytes) -> InspectionReport:
    """Inspect any LoRA file. Raises LoraInvalid if it is not a valid safetensors file."""
    lora = read_lora(path)
    modules = list(lora.modules.values())
    problems = [*lora.problems, *_faults(modules)]
    if not modules:
        problems.append("it contains no LoRA")
    problems += [f"it contains {method}, which is not LoRA" for method in lora.methods]
    problems += _some(f"the tensor {name[:120]!r} is unknown" for name in lora.strange)
    scales = _finite(module.scale for module in modules)
    recipe, word = _recipe_and_word(lora, problems)
    return InspectionReport(
        size_bytes=len(lora.data),
        sha256=hashlib.sha256(lora.data).hexdigest(),
        format=lora.form,
        family=lora.family,
        modules=len(modules),
        parameters=sum(part.elements.size for module in modules for part in _tensors(module)),
        ranks=sorted({module.rank for module in modules}),
        alphas=_finite(module.alpha for module in modules if module.alpha is not None),
        scales=scales,
        precision=[kind for kind, _ in Counter(part.kind for one in modules for part in _tensors(one)).most_common()],
        is_dora=any(module.magnitude is not None for module in modules),
        kinds=_kinds(modules),
        trigger_word=word,
        recipe=recipe,
        readers=_readers(lora, modules),
        problems=problems,
        warnings=_warnings(lora, modules),
        metadata=lora.metadata,
    )


def _is_dora_beside_alphas(lora: ParsedLora, modules: list[Module]) -> bool:
    return lora.form in ("kohya", "comfyui") and any(module.magnitude is not None for module in modules)


def _readers(lora: ParsedLora, modules: list[Module]) -> dict[str, str]:
    readers = _READERS.get((lora.form, lora.family == "z-image"), {})
    return readers | {"diffusers": "without its magnitudes"} if _is_dora_beside_alphas(lora, modules) else readers


def _some(faults: Iterable[str]) -> list[str]:
    """The first few faults of one kind, and the number of others."""
    held = list(faults)
    return held if len(held) <= _SHOWN else [*held[:_SHOWN], f"and {len(held) - _SHOWN} more like this"]


def _finite(values: Iterable[float]) -> list[float]:
    """The distinct finite values, sorted. Others are reported as problems and cannot be JSON."""
    return sorted({value for value in values if np.isfinite(value)})


def _tensors(module: Module) -> list[Tensor]:
    return [part for part in (module.down, module.up, module.magnitude) if part is not None]


def _faults(modules: list[Module]) -> list[str]:
    """Faults of modules: shapes that do not fit, values that are not finite."""
    found: list[str] = []
    for module in modules:
        down, up, name = module.down.shape, module.up.shape, module.name.full
        if len(down) not in (2, 4) or len(up) not in (2, 4) or down[0] != up[1] or not down[0]:
            found.append(f"{name} has shapes {list(down)} and {list(up)}, which do not fit")
        if any(part.kind not in _FLOATS for part in _tensors(module)):
            found.append(f"{name} has integers instead of weights")
        elif not all(np.isfinite(part.floats()).all() for part in _tensors(module)):
            found.append(f"{name} has values that are not finite")
        if module.alpha is not None and not (np.isfinite(module.alpha) and module.alpha > 0):
            found.append(f"{name} has alpha {module.alpha}")
        if module.magnitude is not None and module.magnitude.elements.size != up[0]:
            found.append(f"{name} has {module.magnitude.elements.size} magnitudes for {up[0]} outputs")
    return _some(found)


def _warnings(lora: ParsedLora, modules: list[Module]) -> list[str]:
    warnings = []
    if silent := [module for module in modules if module.alpha is None]:
        warnings.append(
            f"{len(silent)} modules have no alpha: programs load them at strength 1, whatever they were trained with"
        )
    if lora.form == "peft" and lora.family in ("sd15", "sdxl"):
        warnings.append("ComfyUI silently ignores the attention layers of this format: convert the file to kohya")
    if _is_dora_beside_alphas(lora, modules):
        warnings.append("diffusers ignores the magnitudes of a DoRA in this format: convert the file to peft")
    if lora.form == "bare peft":
        warnings.append("its scale is in adapter_config.json, not in the file; diffusers and ComfyUI ignore that file")
    if lora.family is None and modules:
        warnings.append("its family is unknown")
    if modules and not any(module.up.floats().any() for module in modules):
        warnings.append("it has no effect: every up matrix is zero")
    whole = lora.metadata.get("sshs_model_hash")
    if whole and whole != hashlib.sha256(memoryview(lora.data)[data_offset(lora.data) :]).hexdigest():
        warnings.append("its sshs_model_hash does not match its tensors: they were changed later")
    return warnings


def _kinds(modules: list[Module]) -> dict[str, dict[str, Any]]:
    """By kind of module: count, ranks, scales, and the mean and maximum norm of the change of the weights."""
    held: dict[str, list[Module]] = {}
    for module in modules:
        held.setdefault(kind_of(module.name), []).append(module)
    made = {}
    for kind, those in sorted(held.items()):
        norms = [norm for norm in map(_norm, those) if norm is not None]
        made[kind] = {
            "modules": len(those),
            "ranks": sorted({module.rank for module in those}),
            "scales": _finite(module.scale for module in those),
            "norm_mean": float(np.mean(norms)) if norms else None,
            "norm_max": float(np.max(norms)) if norms else None,
        }
    return made


def _norm(module: Module) -> float | None:
    """Frobenius norm of scale x up x down, computed from two products [rank, rank]; None if undefined."""
    shapes = module.down.shape, module.up.shape
    if any(len(shape) < 2 or not all(shape) for shape in shapes) or shapes[0][0] != shapes[1][1]:
        return None  # reported by _faults
    with np.errstate(all="ignore"):
        down, up = (part.floats().astype(np.float64).reshape(part.shape[0], -1) for part in (module.down, module.up))
        if down.shape[0] != up.shape[1]:  # up is a convolution of more than 1 x 1
            return None
        square = float(np.sum((up.T @ up) * (down @ down.T)))
    norm = abs(module.scale) * max(square, 0.0) ** 0.5
    return norm if np.isfinite(norm) else None


def _recipe_and_word(lora: ParsedLora, problems: list[str]) -> tuple[dict[str, Any] | None, str | None]:
    """Recipe and trigger word, from Imprint's fields or those of other trainers."""
    metadata, recipe = lora.metadata, None
    if (text := metadata.get("imprint_recipe")) is not None:
        try:
            recipe = json.loads(text)
        except (ValueError, RecursionError):
            problems.append("its imprint_recipe cannot be parsed")
    if not isinstance(recipe, dict):
        recipe = None
    if "imprint_version" in metadata:
        missing = [name for name in lora_file.REQUIRED_METADATA if not metadata.get(name)]
        problems += [f"its metadata lacks {', '.join(missing)}"] if missing else []
    words = ("imprint_trigger_word", "modelspec.trigger_phrase", "ss_trigger_word")
    return recipe, next((metadata[name] for name in words if metadata.get(name)), None)
