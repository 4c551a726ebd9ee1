"""Which programs read which names of LoRA files for Z-Image. See `readers`."""

import re
from collections.abc import Callable

from training.lora.reading import Module
from training.lora.suffixes import PAIRS

_DOTTED = ".lora.down.weight"
_DEFAULT_ADAPTER = ".lora_A.default.weight"
# Names that only Z-Image's own code has, and those that only diffusers has; the others are the same in both.
_QKV, _OUT = re.compile(r".*\.attention\.qkv"), re.compile(r".*\.attention\.out")
_EMBEDDER = re.compile(r"x_embedder|final_layer\..*")
_DIFFUSERS_ONLY = re.compile(r".*\.attention\.to_(q|k|v|out\.0)|all_(x_embedder|final_layer)\..*")


def diffusers(modules: list[Module], _family: str) -> Callable[[Module], bool]:
    """Which modules diffusers reads. It refuses some files whole."""
    prefixes, suffixes = ({get(module) for module in modules} for get in (_prefix, _suffix))
    if len(suffixes) > 1 or len(prefixes) > 1:
        return _nothing
    prefix, suffix = prefixes.pop(), suffixes.pop()
    has_alphas = any(module.has_alpha for module in modules)
    # With one of these, its converter works on the file; without, only diffusers' own names are read.
    if not (prefix in ("lora_unet_", "diffusion_model.") or suffix == _DEFAULT_ADAPTER or has_alphas):
        fits = prefix == "transformer." and suffix in (PAIRS[1][0], _DOTTED)
        return lambda module: fits and not _is_original(module)
    is_peft = suffix in (PAIRS[1][0], _DEFAULT_ADAPTER)
    # Its converter cannot place the alpha of `out` beside lora_A, nor lora_A under underscores.
    fails = is_peft and (
        prefix == "lora_unet_" or (has_alphas and any(_OUT.fullmatch(module.name.written) for module in modules))
    )
    if (
        fails
        or prefix not in ("lora_unet_", "diffusion_model.", "")
        or not (is_peft or suffix in (PAIRS[0][0], _DOTTED))
    ):
        return _nothing

    def reads(module: Module) -> bool:
        if _QKV.fullmatch(module.name.written):
            return not is_peft and (prefix == "lora_unet_" or suffix == _DOTTED)
        if _OUT.fullmatch(module.name.written):
            return not is_peft
        return not _EMBEDDER.fullmatch(module.name.written)

    return reads


def _prefix(module: Module) -> str:
    return module.name.prefix


def _suffix(module: Module) -> str:
    return module.suffix


def _nothing(_: Module) -> bool:
    return False


def _is_original(module: Module) -> bool:
    return any(pattern.fullmatch(module.name.written) for pattern in (_QKV, _OUT, _EMBEDDER))


def comfyui(module: Module, _family: str) -> bool:
    """Whether ComfyUI reads a module, in versions since December 2025."""
    name = module.name
    if name.prefix == "lora_unet_":
        return not _DIFFUSERS_ONLY.fullmatch(name.written)
    if name.prefix == "diffusion_model.":
        return True
    return name.prefix in ("transformer.", "lycoris_", "") and not _is_original(module)


def automatic1111(_module: Module, _family: str) -> bool:
    """AUTOMATIC1111 does not know the model."""
    return False
