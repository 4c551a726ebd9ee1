"""Read any LoRA file as modules with their matrices and scale, and write it in another format.

Most converters lose the scale. kohya's format has it as `.alpha` beside the matrices (scale alpha / rank), peft's as
JSON in the metadata, with rank, alpha and exceptions by module; without either, loaders assume 1. Does not import
torch.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import LoraInvalid
from training.lora import file as lora_file
from training.lora.names import ALPHA, MAGNITUDES, OTHER_METHODS, PAIRS, ModuleName, parse_module_name
from training.lora.safetensor import Malformed, Tensor, pack, tensor, unpack

ADAPTER = "lora_adapter_metadata"  # the metadata key under which diffusers stores peft's configuration
FORMATS = ("kohya", "peft", "comfyui")


@dataclass
class Module:
    """The LoRA of one module, as in the file: down [rank, in, ...] and up [out, rank, ...]."""

    name: ModuleName
    down: Tensor
    up: Tensor
    alpha: float | None = None  # None: not in the file; loaders assume the rank
    magnitude: Tensor | None = None  # DoRA's, one number per output

    @property
    def rank(self) -> int:
        return self.down.shape[0] if self.down.shape else 0

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None or not self.rank else self.alpha / self.rank


@dataclass
class ParsedLora:
    """The contents of a LoRA file. `problems` make it unusable; no loader knows the tensors in `strange`."""

    modules: dict[str, Module]  # by full canonical name
    metadata: dict[str, str]
    form: str
    family: str | None
    problems: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)  # other methods than LoRA that the file uses
    data: bytes = b""


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_lora(path: Path | bytes, max_bytes: int = lora_file.DEFAULT_MAX_BYTES) -> ParsedLora:
    """Read a LoRA file in any format. Raises LoraInvalid if it is not a valid safetensors file."""
    data = lora_file.read_bytes(path, max_bytes)
    try:
        tensors, metadata = unpack(data)
    except Malformed as error:
        raise LoraInvalid(f"the LoRA file is damaged: {lora_file.corruption_reason(error, data)}") from error
    made = ParsedLora({}, metadata, "unknown", None, data=data)
    left = dict(tensors)
    forms: dict[str, int] = {}
    for key in tensors:
        found = next(((key.removesuffix(down), down, up) for down, up in PAIRS if key.endswith(down)), None)
        if found is None:
            continue
        stem, _, up = found
        name = parse_module_name(stem)
        if name is None or stem + up not in tensors:
            continue
        module = Module(name, left.pop(key), left.pop(stem + up))
        _add_rest(module, stem, left, made)
        if name.full in made.modules:
            made.problems.append(f"{name.full} occurs twice, under two names")
        made.modules[name.full] = module
        forms[name.form] = forms.get(name.form, 0) + 1
    _note_left(left, made)
    made.form = max(forms, key=lambda form: forms[form]) if forms else "unknown"
    if len(forms) > 1:
        made.problems.append(f"its names mix {len(forms)} formats: {', '.join(sorted(forms))}")
    _apply_adapter(made)
    made.family = family_of(made)
    return made


def _add_rest(module: Module, stem: str, left: dict[str, Tensor], made: ParsedLora) -> None:
    """Add alpha and magnitudes to a module, if the file has them."""
    if (alpha := left.pop(stem + ALPHA, None)) is not None:
        if alpha.elements.size == 1:
            module.alpha = float(alpha.floats().reshape(-1)[0])
        else:
            made.problems.append(f"{stem}{ALPHA} is not a single number")
    for end in MAGNITUDES:
        module.magnitude = left.pop(stem + end, module.magnitude)


def _note_left(left: Mapping[str, Tensor], made: ParsedLora) -> None:
    for key in left:
        method = next((method for method, pattern in OTHER_METHODS.items() if pattern.fullmatch(key)), None)
        half = next((end for pair in PAIRS for end in pair if key.endswith(end)), None)
        if method is not None:
            if method not in made.methods:
                made.methods.append(method)
        elif half is not None and parse_module_name(key.removesuffix(half)) is not None:
            made.problems.append(f"{key[:160]} lacks its other matrix")
        else:
            made.strange.append(key)


def _apply_adapter(made: ParsedLora) -> None:
    """Set the alpha of modules that have none from peft's configuration in the metadata."""
    text = made.metadata.get(ADAPTER)
    if text is None:
        return
    try:
        config = json.loads(text)
        for module in made.modules.values():
            if module.alpha is None and (alpha := _alpha_of_config(config, module)) is not None:
                module.alpha = alpha
    except (ValueError, TypeError, AttributeError, RecursionError):
        made.problems.append(f"its {ADAPTER} cannot be parsed, so loaders fail")


def _alpha_of_config(config: Mapping[str, Any], module: Module) -> float | None:
    """The alpha such that alpha / rank is peft's scale for this module; None if the configuration has none."""
    part, name = module.name.part, module.name.module
    alpha = _by_pattern(config.get(f"{part}.alpha_pattern") or {}, name, config.get(f"{part}.lora_alpha"))
    if alpha is None:
        return None
    value = float(alpha)
    return value * module.rank**0.5 if config.get(f"{part}.use_rslora") else value


def _by_pattern(pattern: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    """peft matches the ends of names by regular expressions; here they are plain text, because files are untrusted."""
    plain = {key.removeprefix("^").replace("\\.", "."): value for key, value in pattern.items()}
    return next((value for key, value in plain.items() if name == key or name.endswith("." + key)), otherwise)


def family_of(lora: ParsedLora) -> str | None:
    """The family of the base model; None if unknown."""
    if (named := lora.metadata.get("imprint_family")) in lora_file.NAMINGS:
        return named
    names = list(lora.modules)
    if any(name.startswith("transformer.") for name in names):
        return "z-image"
    if any(re.match(r"unet\.(down_blocks\.0\.attentions|up_blocks\.3)\.", name) for name in names):
        return "sd15"
    if any(name.startswith(("text_encoder_2.", "unet.up_blocks.0.attentions.")) for name in names):
        return "sdxl"
    widths = {lora.modules[name].down.shape[1:2] for name in names if name.endswith(("attn2.to_k", "attn2.to_v"))}
    known: dict[tuple[int, ...], str] = {(768,): "sd15", (2048,): "sdxl"}
    if len(widths) == 1 and (found := known.get(next(iter(widths)))) is not None:
        return found
    base = lora.metadata.get("ss_base_model_version", "") + lora.metadata.get("modelspec.architecture", "")
    return next((family for mark, family in (("xl", "sdxl"), ("sd_v1", "sd15"), ("v1", "sd15")) if mark in base), None)


# ---- writing ---------------------------------------------------------------------------------------------------------


def serialize_as(lora: ParsedLora, to: str) -> bytes:
    """The file in the format `to`, one of FORMATS, with the same matrices, scale and metadata.

    Raises LoraInvalid if that format cannot express the LoRA, or the file has problems.
    """
    refuse_broken(lora)
    family = lora.family
    if family is None:
        raise LoraInvalid("the family of the LoRA file is unknown, so its names cannot be converted")
    if to == "kohya" and family == "z-image":
        raise LoraInvalid("no program reads kohya's names for z-image: convert to comfyui or peft instead")
    metadata = {key: value for key, value in lora.metadata.items() if key != ADAPTER}
    tensors: dict[str, Tensor] = {}
    for module in lora.modules.values():
        if to == "peft":
            tensors |= _peft(module)
        else:
            tensors |= _with_alpha(module, family)
    if to == "peft":
        metadata[ADAPTER] = adapter_metadata(lora)
    return pack(tensors, {**metadata, **lora_file.hashes(tensors, metadata)})


def refuse_broken(lora: ParsedLora) -> None:
    """Raises LoraInvalid if the file has problems that a conversion would hide."""
    if lora.methods:
        raise LoraInvalid(f"the file contains {', '.join(lora.methods)}; only LoRA and DoRA can be converted")
    if problems := [*lora.problems, *(f"the tensor {name[:120]!r} is unknown" for name in lora.strange)]:
        raise LoraInvalid(
            f"the LoRA file is broken: {problems[0]}" + (f", and {len(problems) - 1} more" * (len(problems) > 1))
        )
    if not lora.modules:
        raise LoraInvalid("the file contains no LoRA")


def _with_alpha(module: Module, family: str) -> dict[str, Tensor]:
    """The tensors in kohya's format; for z-image in ComfyUI's, which differs only in the names."""
    name = module.name
    if name.part == "transformer":
        if ".qkv" in name.module or name.module.endswith("attention.out"):
            raise LoraInvalid(f"{name.module} has a form that only ComfyUI reads")
        stem, down, up = f"diffusion_model.{name.module}", ".lora_A.weight", ".lora_B.weight"
    else:
        first = {"unet": "unet", "text_encoder": "te" if family == "sd15" else "te1", "text_encoder_2": "te2"}[
            name.part
        ]
        stem, down, up = f"lora_{first}_{name.module.replace('.', '_')}", ".lora_down.weight", ".lora_up.weight"
    made = {stem + down: module.down, stem + up: module.up}
    alpha = module.rank if module.alpha is None else module.alpha
    made[stem + ALPHA] = tensor(np.asarray(alpha, np.float32))
    if module.magnitude is not None:
        column = (-1, *[1] * (len(module.down.shape) - 1))
        made[stem + lora_file.MAGNITUDE] = Tensor(module.magnitude.kind, module.magnitude.elements.reshape(column))
    return made


def _peft(module: Module) -> dict[str, Tensor]:
    stem = module.name.full
    made = {f"{stem}.lora_A.weight": module.down, f"{stem}.lora_B.weight": module.up}
    if module.magnitude is not None:
        made[f"{stem}.lora_magnitude_vector"] = Tensor(module.magnitude.kind, module.magnitude.elements.reshape(-1))
    return made


def adapter_metadata(lora: ParsedLora) -> str:
    """peft's configuration of each part, as diffusers writes it: the commonest rank and alpha, and exceptions."""
    config: dict[str, Any] = {}
    for part in sorted({module.name.part for module in lora.modules.values()}):
        held = [module for module in lora.modules.values() if module.name.part == part]
        ranks = {module.name.module: module.rank for module in held}
        alphas = {module.name.module: module.rank if module.alpha is None else module.alpha for module in held}
        rank, alpha = _commonest(ranks), _commonest(alphas)
        config |= {
            f"{part}.r": rank,
            f"{part}.lora_alpha": alpha,
            f"{part}.rank_pattern": {name: value for name, value in sorted(ranks.items()) if value != rank},
            f"{part}.alpha_pattern": {name: value for name, value in sorted(alphas.items()) if value != alpha},
            f"{part}.target_modules": sorted(ranks),
            f"{part}.use_dora": any(module.magnitude is not None for module in held),
            f"{part}.use_rslora": False,
            f"{part}.lora_bias": False,
            f"{part}.bias": "none",
        }
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def _commonest(values: Mapping[str, Any]) -> Any:
    held = list(values.values())
    return max(sorted(set(held)), key=held.count)
