"""Which programs read which names of LoRA files for Qwen-Image. See `readers`."""

from collections.abc import Callable

from training.lora.reading import Module
from training.lora.suffixes import PAIRS

_KOHYA, _PEFT = PAIRS[0][0], PAIRS[1][0]


def diffusers(modules: list[Module], _family: str) -> Callable[[Module], bool]:
    """Which modules diffusers reads. It fails on an alpha beside the names of its own form."""
    prefixes, suffixes = {module.name.prefix for module in modules}, {module.suffix for module in modules}
    has_alphas = any(module.has_alpha for module in modules)
    fits = {
        "transformer.": suffixes == {_PEFT} and not has_alphas,
        "diffusion_model.": suffixes == {_PEFT} or (suffixes == {_KOHYA} and has_alphas),
        "": suffixes == {_PEFT} and has_alphas,
        "lora_unet_": suffixes == {_KOHYA} and has_alphas,
    }.get(next(iter(prefixes)), False)
    return lambda _: fits and len(prefixes) == 1


def comfyui(module: Module, _family: str) -> bool:
    """Whether ComfyUI reads a module."""
    return module.name.prefix in ("transformer.", "diffusion_model.", "lora_unet_", "lycoris_", "")


def automatic1111(_module: Module, _family: str) -> bool:
    """AUTOMATIC1111 does not know the model."""
    return False
