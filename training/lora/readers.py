"""Which programs read which LoRA file, and how much of it: by the names, the suffixes, DoRA and the family.

What is said here was seen in the programs: diffusers 0.42, ComfyUI 0.3.64 with the key map of Z-Image since December
2025 (`fakes/comfyui/loras.py` records its key maps), AUTOMATIC1111 1.10. Tests hold it against diffusers' own code and
those key maps. ComfyUI and AUTOMATIC1111 refuse no file that they read in part, so it may seem to work.
"""

import re
from collections.abc import Callable

from training.lora.reading import Module, ParsedLora
from training.lora.suffixes import DORA_SCALE, PAIRS

WHOLE = "whole"
NO = "no"
CLOSE = "close"  # ComfyUI divides DoRA's lengths by those of the base's rows instead of the sum's
WITHOUT_LENGTHS = "without its magnitudes"
WRONG = "wrongly"  # DoRA's lengths along the wrong axis
WITHOUT_SCALE = "without its scale"  # it is in the metadata alone, which only diffusers reads

_OLD_PROCESSOR = "_lora.down.weight"
_DOTTED = ".lora.down.weight"
_DEFAULT_ADAPTER = ".lora_A.default.weight"
_KOHYA = (".lora_down.weight", ".lora_A.weight")
_KOHYA_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
# Names that only Z-Image's own code has, and those that only diffusers has; the others are the same in both.
_QKV, _OUT = re.compile(r".*\.attention\.qkv"), re.compile(r".*\.attention\.out")
_EMBEDDER = re.compile(r"x_embedder|final_layer\..*")
_DIFFUSERS_ONLY = re.compile(r".*\.attention\.to_(q|k|v|out\.0)|all_(x_embedder|final_layer)\..*")
_ORIGINAL = re.compile(r"(input|output)_blocks\.|middle_block\.|time_embed\.|label_emb\.|out\.2$")
_CLIP = re.compile(r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])")


def readers(lora: ParsedLora) -> dict[str, str]:
    """How each program reads the LoRA in the file: `whole`, `no`, `in part (…)`, or a word about its DoRA.

    {} for a file that holds none of a family of ours.
    """
    modules = list(lora.modules.values())
    if not modules or lora.family is None:
        return {}
    return {
        "diffusers": _diffusers(modules, lora.family),
        "ComfyUI": _comfyui(modules, lora.family),
        "AUTOMATIC1111": _automatic1111(modules, lora.family),
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


# ---- diffusers -------------------------------------------------------------------------------------------------------


def _diffusers(modules: list[Module], family: str) -> str:
    """diffusers refuses some files whole, and drops `.dora_scale`."""
    reads = _z_image_pipeline(modules) if family == "z-image" else _unet_pipeline(modules, family)
    return _verdict(
        modules,
        reads,
        lambda module: WITHOUT_LENGTHS if module.magnitude_suffix == DORA_SCALE else WHOLE,
        reads_metadata=True,
    )


def _unet_pipeline(modules: list[Module], family: str) -> Callable[[Module], bool]:
    if all(module.name.prefix in _KOHYA_PREFIXES for module in modules):
        # Its converter knows kohya's suffixes, and the original names only of SDXL.
        fits = all(module.suffix == PAIRS[0][0] for module in modules) and (
            family == "sdxl" or not any(_ORIGINAL.match(module.name.written) for module in modules)
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


def _z_image_pipeline(modules: list[Module]) -> Callable[[Module], bool]:
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


# ---- ComfyUI ---------------------------------------------------------------------------------------------------------


def _comfyui(modules: list[Module], family: str) -> str:
    reads = _comfyui_reads_z_image if family == "z-image" else _comfyui_reads_unet
    return _verdict(modules, lambda module: reads(module, family), _comfyui_dora)


def _comfyui_dora(module: Module) -> str:
    if module.magnitude_suffix != DORA_SCALE:
        return WITHOUT_LENGTHS
    return CLOSE if module.axis == "output" else WHOLE


def _comfyui_reads_unet(module: Module, family: str) -> bool:
    name = module.name
    if name.part.startswith("text_encoder"):
        known = name.prefix in (*_KOHYA_PREFIXES, "text_encoder.", "text_encoder_2.")
        has_part = family == "sdxl" or name.part == "text_encoder"
        return known and has_part and bool(_CLIP.fullmatch(name.written))
    if name.prefix in ("lora_unet_", "lycoris_"):
        return name.prefix == "lora_unet_" or not _ORIGINAL.match(name.written)
    if name.prefix == "diffusion_model.":
        return bool(_ORIGINAL.match(name.written))
    if name.prefix in ("", "unet.") and not _ORIGINAL.match(name.written):
        # Of attention only the names of diffusers' old processors are in its map.
        return ".to_" not in name.written or (".processor.to_" in name.written and not name.written.endswith(".0"))
    return False


def _comfyui_reads_z_image(module: Module, _family: str) -> bool:
    name = module.name
    if name.prefix == "lora_unet_":
        return not _DIFFUSERS_ONLY.fullmatch(name.written)
    if name.prefix == "diffusion_model.":
        return True
    return name.prefix in ("transformer.", "lycoris_", "") and not _is_original(module)


# ---- AUTOMATIC1111 ---------------------------------------------------------------------------------------------------


def _automatic1111(modules: list[Module], family: str) -> str:
    return _verdict(
        modules,
        lambda module: family != "z-image" and module.name.prefix in _KOHYA_PREFIXES and module.suffix in _KOHYA,
        # It takes lengths as LyCORIS's, one per column, and stretches others over the wrong axis without a word.
        lambda module: (
            WITHOUT_LENGTHS if module.magnitude_suffix != DORA_SCALE else WRONG if module.axis == "output" else WHOLE
        ),
    )
