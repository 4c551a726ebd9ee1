"""Inspect a LoRA file: family, format, scale, strength, problems and the programs that load it. Without torch."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from training.families.registry import FAMILIES
from training.lora import file as lora_file
from training.lora import soundness
from training.lora.formats import home_form
from training.lora.names import kind_of
from training.lora.readers import CLOSE, WHOLE, WITHOUT_LENGTHS, WITHOUT_SCALE, WRONG, readers
from training.lora.reading import Module, ParsedLora, read_lora
from training.lora.safetensor import Tensor, data_offset

Verdict = Literal["sound", "other", "broken"]
# The change to a module's weights below which no picture changes: weights of a layer have a norm of 10 and more.
_NOTHING = 1e-4


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
    # sound: only LoRA or DoRA of a family of ours. other: a sound file that is or contains something else, see
    # `contains`. broken: see `problems`.
    verdict: Verdict = "sound"
    contains: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def inspect(path: Path | bytes) -> InspectionReport:
    """Inspect any LoRA file. Raises LoraInvalid if it is not a valid safetensors file."""
    lora = read_lora(path)
    modules = list(lora.modules.values())
    counted = modules or list(lora.others.values())
    problems = soundness.problems(lora)
    recipe, word = _recipe_and_word(lora, problems)
    kinds = _kinds(counted)
    found_readers = readers(lora)
    return InspectionReport(
        size_bytes=len(lora.data),
        sha256=hashlib.sha256(lora.data).hexdigest(),
        format=lora.form,
        family=lora.family or lora.other_family,
        modules=len(counted),
        parameters=sum(part.elements.size for module in counted for part in _tensors(module)),
        ranks=sorted({module.rank for module in counted}),
        alphas=_finite(module.alpha for module in counted if module.alpha is not None),
        scales=_finite(module.scale for module in counted),
        precision=[kind for kind, _ in Counter(part.kind for one in counted for part in _tensors(one)).most_common()],
        is_dora=any(module.magnitude is not None for module in counted),
        kinds=kinds,
        trigger_word=word,
        recipe=recipe,
        readers=found_readers,
        problems=problems,
        warnings=[*_warnings(lora, counted, kinds), *_reader_warnings(lora, found_readers)],
        metadata=lora.metadata,
        verdict="broken" if problems else "other" if lora.contains or lora.family is None else "sound",
        contains=lora.contains,
    )


def _finite(values: Iterable[float]) -> list[float]:
    """The distinct finite values, sorted. Others are reported as problems and cannot be JSON."""
    return sorted({value for value in values if np.isfinite(value)})


def _tensors(module: Module) -> list[Tensor]:
    return [part for part in (module.down, module.up, module.magnitude) if part is not None]


def _warnings(lora: ParsedLora, modules: list[Module], kinds: Mapping[str, Mapping[str, Any]]) -> list[str]:
    warnings = []
    if lora.contains:
        warnings.append(f"it contains {', '.join(lora.contains)}, which Imprint neither converts nor draws with")
    needs_alpha = lora.family is None or FAMILIES[lora.family].lora.naming.alpha
    if needs_alpha and (silent := [module for module in modules if module.alpha is None]):
        warnings.append(
            f"{len(silent)} modules have no alpha: programs load them at strength 1, whatever they were trained with"
        )
    if lora.form == "bare peft":
        warnings.append("its scale is in adapter_config.json, not in the file; diffusers and ComfyUI ignore that file")
    if lora.family is None and lora.other_family is None and modules:
        several = " or ".join(lora.possible)
        why = f": its layers are those of {several}, and its metadata does not say of which" if several else ""
        warnings.append(f"its family is unknown{why}")
    norms = [stats["norm_max"] for stats in kinds.values() if stats["norm_max"] is not None]
    if modules and not any(module.up.floats().any() for module in modules):
        warnings.append("it has no effect: every up matrix is zero")
    elif norms and max(norms) < _NOTHING and not any(module.magnitude is not None for module in modules):
        warnings.append(
            f"it changes almost nothing (largest norm {max(norms):.2g}): its learning rate was too small, or its "
            "training too short"
        )
    whole = lora.metadata.get("sshs_model_hash")
    if whole and whole != hashlib.sha256(memoryview(lora.data)[data_offset(lora.data) :]).hexdigest():
        warnings.append("its sshs_model_hash does not match its tensors: they were changed later")
    return warnings


def _reader_warnings(lora: ParsedLora, found: Mapping[str, str]) -> list[str]:
    """What a person who uses the file in one of the programs must know, and which form is read instead."""
    warnings = []
    how = found.get("ComfyUI", WHOLE)
    if how not in (WHOLE, CLOSE) and lora.family is not None:
        form = home_form(lora.family)
        silent = ", and only its log says so" if "(" in how else ""
        warnings.append(f"ComfyUI loads this form {how}{silent}: convert the file to {form}")
    if WITHOUT_SCALE in how:
        warnings.append("its scale is in the metadata, which only diffusers reads: ComfyUI loads it at scale 1")
    if WITHOUT_LENGTHS in found.get("diffusers", ""):
        per_input = any(module.axis == "input" for module in lora.modules.values())
        instead = "" if per_input else ": convert the file to peft"
        warnings.append(f"diffusers ignores the lengths of a DoRA in this form{instead}")
    if CLOSE in how:
        warnings.append(
            "ComfyUI divides the lengths of this DoRA by those of the base model's rows, so it is off by as much as "
            "the LoRA changes them: 3 % for a small change, 63 % for one as large as the weights"
        )
    if WRONG in found.get("AUTOMATIC1111", ""):
        warnings.append("AUTOMATIC1111 expects DoRA lengths per input: it draws wrong pictures with this file")
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
        return None  # reported by `soundness`
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
