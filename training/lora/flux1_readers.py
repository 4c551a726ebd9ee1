"""Which programs read which names of LoRA files for FLUX.1. See `readers`."""

import re
from collections.abc import Callable

from training.lora.reading import Module
from training.lora.suffixes import PAIRS

_KOHYA, _PEFT = PAIRS[0][0], PAIRS[1][0]
_ORIGINAL = re.compile(r"(double|single)_blocks\.\d+\..*")
_EMBEDDERS = re.compile(r".*(embed|norm_out|^proj_out).*")


def diffusers(modules: list[Module], _family: str) -> Callable[[Module], bool]:
    """Which modules diffusers reads: kohya's names of the makers' code, or its own behind `transformer.`."""
    prefixes, suffixes = {module.name.prefix for module in modules}, {module.suffix for module in modules}
    if prefixes == {"lora_unet_"}:
        fits = suffixes == {_KOHYA}
        return lambda module: fits and bool(_ORIGINAL.fullmatch(module.name.written))
    fits = prefixes == {"transformer."} and suffixes == {_PEFT}
    return lambda module: fits and not _ORIGINAL.fullmatch(module.name.written)


def comfyui(module: Module, _family: str) -> bool:
    """Whether ComfyUI reads a module."""
    name = module.name
    if name.prefix in ("diffusion_model.", "lora_unet_"):
        return bool(_ORIGINAL.fullmatch(name.written))
    is_mapped = not _ORIGINAL.fullmatch(name.written) and not _EMBEDDERS.fullmatch(name.written)
    return name.prefix in ("transformer.", "lycoris_", "") and is_mapped


def automatic1111(_module: Module, _family: str) -> bool:
    """AUTOMATIC1111 does not know the model."""
    return False
