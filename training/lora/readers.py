"""Which programs read which LoRA file, and how much of it: by the names, the suffixes, DoRA and the family.

What is said here was seen in the programs: diffusers 0.42, ComfyUI 0.3.64 with the key map of Z-Image since December
2025 (`fakes/comfyui/loras.py` records its key maps), AUTOMATIC1111 1.10. Tests hold it against diffusers' own code and
those key maps. ComfyUI and AUTOMATIC1111 refuse no file that they read in part, so it may seem to work.
"""

from collections.abc import Callable
from importlib import import_module

from training.families.registry import FAMILIES
from training.lora.reading import Module, ParsedLora
from training.lora.suffixes import DORA_SCALE

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
    if not modules or lora.family is None or not FAMILIES[lora.family].lora.readers:
        return {}
    rules = import_module(FAMILIES[lora.family].lora.readers)
    family = lora.family
    return {
        "diffusers": _verdict(modules, rules.diffusers(modules, family), _diffusers_dora, reads_metadata=True),
        "ComfyUI": _verdict(modules, lambda module: rules.comfyui(module, family), _comfyui_dora),
        "AUTOMATIC1111": _verdict(modules, lambda module: rules.automatic1111(module, family), _automatic1111_dora),
    }


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
