"""Which programs read which names of LoRA files for Stable Diffusion 1.x and XL. See `readers`."""

import re
from collections.abc import Callable

from training.families.registry import FAMILIES
from training.lora.reading import Module
from training.lora.suffixes import PAIRS

_OLD_PROCESSOR = "_lora.down.weight"
_DOTTED = ".lora.down.weight"
_KOHYA = (".lora_down.weight", ".lora_A.weight")
_KOHYA_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_ORIGINAL = re.compile(r"(input|output)_blocks\.|middle_block\.|time_embed\.|label_emb\.|out\.2$")
_CLIP = re.compile(r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])")


def _has_two_encoders(family: str) -> bool:
    return "text_encoder_2" in FAMILIES[family].classes


def diffusers(modules: list[Module], family: str) -> Callable[[Module], bool]:
    """Which modules diffusers reads. It refuses some files whole."""
    if all(module.name.prefix in _KOHYA_PREFIXES for module in modules):
        # Its converter knows kohya's suffixes, and the original names only of SDXL.
        fits = all(module.suffix == PAIRS[0][0] for module in modules) and (
            _has_two_encoders(family) or not any(_ORIGINAL.match(module.name.written) for module in modules)
        )
        return lambda _: fits
    readable = {PAIRS[1][0], _DOTTED, _OLD_PROCESSOR, ".lora_linear_layer.down.weight"}
    fits = (
        {module.suffix for module in modules} <= readable
        and all(module.name.form == "peft" for module in modules)
        and not any(module.has_alpha for module in modules)
    )
    # The suffix of its old attention processors is read on attention alone.
    return lambda module: fits and (module.suffix != _OLD_PROCESSOR or ".to_" in module.name.module)


def comfyui(module: Module, family: str) -> bool:
    """Whether ComfyUI reads a module."""
    name = module.name
    if name.part.startswith("text_encoder"):
        known = name.prefix in (*_KOHYA_PREFIXES, "text_encoder.", "text_encoder_2.")
        has_part = _has_two_encoders(family) or name.part == "text_encoder"
        return known and has_part and bool(_CLIP.fullmatch(name.written))
    if name.prefix in ("lora_unet_", "lycoris_"):
        return name.prefix == "lora_unet_" or not _ORIGINAL.match(name.written)
    if name.prefix == "diffusion_model.":
        return bool(_ORIGINAL.match(name.written))
    if name.prefix in ("", "unet.") and not _ORIGINAL.match(name.written):
        # Of attention only the names of diffusers' old processors are in its map.
        return ".to_" not in name.written or (".processor.to_" in name.written and not name.written.endswith(".0"))
    return False


def automatic1111(module: Module, _family: str) -> bool:
    """Whether AUTOMATIC1111 reads a module."""
    return module.name.prefix in _KOHYA_PREFIXES and module.suffix in _KOHYA
