"""Which programs read which names of LoRA files for FLUX.2. See `readers`."""

import re
from collections.abc import Callable

from training.lora.reading import Module
from training.lora.suffixes import PAIRS

_KOHYA, _PEFT = PAIRS[0][0], PAIRS[1][0]
_ORIGINAL = re.compile(r"(double|single)_blocks\.\d+\..*")
_EMBEDDERS = re.compile(r".*(modulation|embed).*")


def diffusers(modules: list[Module], _family: str) -> Callable[[Module], bool]:
    """Which modules diffusers reads. It fails on a file with an alpha beside peft's matrices."""
    prefixes, suffixes = {module.name.prefix for module in modules}, {module.suffix for module in modules}
    has_alphas = any(module.has_alpha for module in modules)
    if prefixes == {"lora_unet_"}:
        fits = suffixes == {_KOHYA}
        return lambda module: fits and bool(_ORIGINAL.fullmatch(module.name.written))
    known = {"transformer.", "diffusion_model.", "base_model.model."}
    fits = prefixes <= known and len(prefixes) == 1 and not has_alphas
    fits = fits and (suffixes == {_PEFT} or (prefixes == {"diffusion_model."} and suffixes == {_KOHYA}))
    is_own = prefixes == {"diffusion_model."}
    return lambda module: fits and (is_own or not _ORIGINAL.fullmatch(module.name.written))


def comfyui(module: Module, _family: str) -> bool:
    """Whether ComfyUI reads a module, in versions that know FLUX.2."""
    name = module.name
    if name.prefix in ("diffusion_model.", "lora_unet_"):
        return bool(_ORIGINAL.fullmatch(name.written)) or name.written in ("img_in", "txt_in")
    is_mapped = not _ORIGINAL.fullmatch(name.written) and not _EMBEDDERS.fullmatch(name.written)
    return name.prefix in ("transformer.", "lycoris_", "") and is_mapped


def automatic1111(_module: Module, _family: str) -> bool:
    """AUTOMATIC1111 does not know the model."""
    return False
