"""Write a LoRA in another form: the same matrices under other names, and the scale where that form has it.

Most converters lose the scale. Does not import torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from core.errors import LoraInvalid
from training.families.record import Family, Form
from training.families.registry import FAMILIES
from training.lora import file as lora_file
from training.lora import soundness
from training.lora.fusing import fused
from training.lora.names import of_original
from training.lora.reading import ADAPTER, Module, ParsedLora
from training.lora.safetensor import Tensor, pack, tensor
from training.lora.suffixes import ALPHA, DORA_SCALE

FORMATS: tuple[Form, ...] = get_args(Form)


def home_form(family: str) -> str:
    """The form that a training of the family writes: what most programs read whole."""
    return FAMILIES[family].lora.form


def serialize_as(lora: ParsedLora, to: str) -> bytes:
    """The file in the format `to`, one of FORMATS, with the same matrices, scale and metadata.

    Raises LoraInvalid if that format cannot express the LoRA, or the file has problems.
    """
    refuse_other(lora)
    if lora.family is None:
        raise LoraInvalid("the family of the LoRA file is unknown, so its names cannot be converted")
    family = FAMILIES[lora.family]
    if (reason := family.lora.refused.get(to)) is not None:
        raise LoraInvalid(reason)
    is_folded = not family.lora.naming.alpha
    metadata = {key: value for key, value in lora.metadata.items() if key != ADAPTER}
    tensors: dict[str, Tensor] = {}
    modules = [part for held in lora.modules.values() for part in _split(held, family)]
    if to != "peft" and family.lora.is_fused:
        modules = fused(modules, family)
    for module in modules:
        if to == "peft":
            tensors |= _peft(_folded(module) if is_folded else module)
        else:
            tensors |= _with_alpha(module, family, to)
    if to == "peft" and not is_folded:
        metadata[ADAPTER] = adapter_metadata(modules)
    return pack(tensors, {**metadata, **lora_file.hashes(tensors, metadata)})


def refuse_other(lora: ParsedLora) -> None:
    """Raises LoraInvalid for a broken file, and for one with contents that a conversion would lose."""
    soundness.require_sound(lora)
    if lora.contains:
        raise LoraInvalid(f"the file contains {', '.join(lora.contains)}; only LoRA and DoRA can be converted")


def _split(module: Module, family: Family) -> list[Module]:
    """A fused module (query, key and value in one) as several with the same down matrix; others as they are."""
    name = module.name.module
    names = of_original(name, family) or ()
    if len(names) < 2:
        return [module]
    shares = family.lora.rows(names)
    unit, left = divmod(module.up.shape[0], sum(shares))
    if left:
        size = " of one size" if len(set(shares)) == 1 else ""
        raise LoraInvalid(f"{name} has {module.up.shape[0]} outputs, which are no {len(names)} matrices{size}")
    ends = [unit * sum(shares[: number + 1]) for number in range(len(names) - 1)]

    def share(part: Tensor, number: int) -> Tensor:
        return Tensor(part.kind, np.split(part.elements, ends)[number])

    made = []
    for number, own in enumerate(names):
        lengths = module.magnitude
        if lengths is not None and module.axis == "output":
            lengths = share(lengths, number)
        made.append(
            replace(module, name=replace(module.name, module=own), up=share(module.up, number), magnitude=lengths)
        )
    return made


def _folded(module: Module) -> Module:
    """A module with its scale multiplied into the up matrix, for programs that refuse an alpha."""
    if module.magnitude is not None:
        raise LoraInvalid(f"{module.name.full} has DoRA lengths, which no program reads for this family")
    if module.scale == 1:
        return replace(module, alpha=None)
    return replace(module, alpha=None, up=tensor(module.up.floats() * np.float32(module.scale), module.up.kind))


def _with_alpha(module: Module, family: Family, to: str) -> dict[str, Tensor]:
    """The tensors in kohya's format or in ComfyUI's, which differs only in the names, and where it has no alpha."""
    name = module.name
    if name.part == "transformer" and to == "kohya":
        stem, down, up = f"lora_unet_{name.module.replace('.', '_')}", ".lora_down.weight", ".lora_up.weight"
    elif name.part == "transformer":
        stem, down, up = f"diffusion_model.{name.module}", ".lora_A.weight", ".lora_B.weight"
    else:
        has_two = "text_encoder_2" in family.classes
        first = {"unet": "unet", "text_encoder": "te1" if has_two else "te", "text_encoder_2": "te2"}[name.part]
        stem, down, up = f"lora_{first}_{name.module.replace('.', '_')}", ".lora_down.weight", ".lora_up.weight"
    made = {stem + down: module.down, stem + up: module.up}
    if to == "comfyui" and family.lora.is_fused:  # diffusers refuses an alpha there, and the scale is in the up matrix
        return made
    alpha = module.rank if module.alpha is None else module.alpha
    made[stem + ALPHA] = tensor(np.asarray(alpha, np.float32))
    if module.magnitude is not None:
        ones = [1] * (len(module.down.shape) - 2)
        shape = (1, -1, *ones) if module.axis == "input" else (-1, 1, *ones)
        made[stem + DORA_SCALE] = Tensor(module.magnitude.kind, module.magnitude.elements.reshape(shape))
    return made


def _peft(module: Module) -> dict[str, Tensor]:
    stem = module.name.full
    made = {f"{stem}.lora_A.weight": module.down, f"{stem}.lora_B.weight": module.up}
    if module.magnitude is not None:
        if module.axis == "input":
            raise LoraInvalid(
                f"{module.name.full} has one DoRA length per input, as LyCORIS trains them; the peft form has one per "
                "output. Convert to kohya or comfyui instead"
            )
        made[f"{stem}.lora_magnitude_vector"] = Tensor(module.magnitude.kind, module.magnitude.elements.reshape(-1))
    return made


def adapter_metadata(modules: Sequence[Module]) -> str:
    """peft's configuration of each part, as diffusers writes it: the commonest rank and alpha, and exceptions.

    Names are without `text_model.`, which transformers 5 took out of CLIP's: peft finds a layer by the end of its name,
    so both versions have it. diffusers takes the prefix from the keys of the tensors, but not from this.
    """
    config: dict[str, Any] = {}
    for part in sorted({module.name.part for module in modules}):
        held = [module for module in modules if module.name.part == part]
        named = {module.name.module.removeprefix("text_model."): module for module in held}
        ranks = {name: module.rank for name, module in named.items()}
        alphas = {name: module.rank if module.alpha is None else module.alpha for name, module in named.items()}
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
