"""Which programs read which LoRA file, and how much of it: by the names, the suffixes, DoRA and the family.

What is said here was seen in the programs: diffusers 0.42, ComfyUI 0.3.64 with the key map of Z-Image since December
2025, AUTOMATIC1111 1.10. The families' records have it: ComfyUI's key maps, and rules that tests hold against
diffusers' own code. ComfyUI and AUTOMATIC1111 refuse no file that they read in part, so it may seem to work.
"""

import re
from collections.abc import Callable
from functools import partial

from training.families.registry import FAMILIES
from training.lora.reading import Module, ParsedLora
from training.lora.suffixes import DORA_SCALE, PAIRS

WHOLE = "whole"
NO = "no"
CLOSE = "close"  # ComfyUI divides DoRA's lengths by those of the base's rows instead of the sum's
WITHOUT_LENGTHS = "without its magnitudes"
WRONG = "wrongly"  # DoRA's lengths along the wrong axis
WITHOUT_SCALE = "without its scale"  # it is in the metadata alone, which only diffusers reads


def readers(lora: ParsedLora) -> dict[str, str]:
    """How each program reads the LoRA in the file: `whole`, `no`, `in part (…)`, or a word about its DoRA.

    {} for a file that holds none of a family of ours, or one of which that is not known.
    """
    modules = list(lora.modules.values())
    names = FAMILIES[lora.family].lora if modules and lora.family is not None else None
    if names is None or names.diffusers is None:
        return {}
    return {
        "diffusers": _verdict(modules, names.diffusers(modules), _diffusers_dora, reads_metadata=True),
        "ComfyUI": _verdict(modules, partial(_comfyui, names.comfyui), _comfyui_dora),
        "AUTOMATIC1111": _verdict(modules, partial(_automatic1111, names.is_of_automatic1111), _automatic1111_dora),
    }


def _comfyui(known: re.Pattern[str] | None, module: Module) -> bool:
    return known is not None and known.fullmatch(module.stem) is not None


def _automatic1111(is_known: bool, module: Module) -> bool:
    return is_known and module.name.form == "kohya" and module.suffix in (PAIRS[0][0], PAIRS[1][0])


def _verdict(
    modules: list[Module],
    reads: Callable[[Module], bool],
    dora: Callable[[Module], str],
    reads_metadata: bool = False,
) -> str:
    """The share of the modules that a program reads, and what it does to their scale, and to a DoRA among them."""
    read = [module for module in modules if reads(module)]
    if not read:
        return f"{NO} (0 of {len(modules)})"
    words = {dora(module) for module in read if module.magnitude is not None}
    if not reads_metadata and any(not module.has_alpha and module.scale != 1 for module in read):
        words.add(WITHOUT_SCALE)
    word = ", ".join(word for word in (WRONG, WITHOUT_SCALE, WITHOUT_LENGTHS, CLOSE) if word in words)
    if len(read) < len(modules):
        return f"in part ({len(read)} of {len(modules)})" + f", {word}" * bool(word)
    return word or WHOLE


def _diffusers_dora(module: Module) -> str:
    """diffusers drops `.dora_scale`."""
    return WITHOUT_LENGTHS if module.magnitude_suffix == DORA_SCALE else WHOLE


def _comfyui_dora(module: Module) -> str:
    if module.magnitude_suffix != DORA_SCALE:
        return WITHOUT_LENGTHS
    return CLOSE if module.axis == "output" else WHOLE


def _automatic1111_dora(module: Module) -> str:
    """It takes lengths as LyCORIS's, one per column, and stretches others over the wrong axis without a word."""
    if module.magnitude_suffix != DORA_SCALE:
        return WITHOUT_LENGTHS
    return WRONG if module.axis == "output" else WHOLE
