"""The kind of base model that a LoRA file was trained on: one of Imprint's families, or another, by its usual name.

Names of modules tell most; shapes tell those apart that share names; metadata decides what is left.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from training.families.record import Family
from training.families.records.stable_diffusion import context_widths
from training.families.registry import FAMILIES
from training.lora.names import ModuleName, in_family

# Modules that only one kind of model has, of names with underscores. The first that matches decides.
_OTHERS = (
    ("FLUX.2", r"(single|double)_stream_modulation|to_qkv_mlp_proj"),
    ("Chroma", r"distilled_guidance_layer"),
    ("AuraFlow", r"joint_transformer_blocks_\d"),
    ("HiDream", r"(single|double)_stream_blocks_\d"),
    ("HunyuanVideo", r"double_blocks_\d+_(img|txt)_mlp_fc\d|individual_token_refiner"),
    ("FLUX.1", r"single_transformer_blocks_\d|(double|single)_blocks_\d"),
    ("Qwen-Image", r"transformer_blocks_\d+_(img|txt)_(mlp|mod)"),
    ("Stable Diffusion 3", r"joint_blocks_\d|transformer_blocks_\d+_(attn2?_(add_[qkv]_proj|to_add_out)|ff_context)"),
    ("Wan", r"(^|_)blocks_\d+_(self_attn_[qkvo]|cross_attn_([qkvo]|k_img|v_img)|ffn_[02])(_|$)"),
    ("LTX-Video or PixArt", r"^(diffusion_model|transformer|lora_unet|lora_transformer)_transformer_blocks_\d+_attn"),
    ("Stable Cascade", r"^lora_prior_"),
)
_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in _OTHERS)
# Words of `ss_base_model_version` and `modelspec.architecture`.
_WORDS = {
    "flux2": "FLUX.2", "flux-2": "FLUX.2", "flux": "FLUX.1", "chroma": "Chroma", "sd3": "Stable Diffusion 3",
    "stable-diffusion-3": "Stable Diffusion 3", "stable-diffusion-v3": "Stable Diffusion 3",
    "sd_v2": "Stable Diffusion 2", "stable-diffusion-v2": "Stable Diffusion 2", "qwen": "Qwen-Image", "wan": "Wan",
    "hunyuan": "HunyuanVideo", "lumina": "Lumina 2", "cascade": "Stable Cascade", "ltx": "LTX-Video",
    "pixart": "PixArt",
}  # fmt: skip
# Modules with their number of inputs; 0 where the file does not tell.
Modules = Sequence[tuple[ModuleName, int]]


def other_family(stems: Iterable[str], modules: Modules, metadata: Mapping[str, str]) -> str | None:
    """The usual name of a kind of model that Imprint does not train; None for its own families and unknown ones."""
    plain = [stem.replace(".", "_") for stem in stems]
    widths = {name.full: inputs for name, inputs in modules if inputs}
    for name, pattern in _PATTERNS:
        if any(pattern.search(stem) for stem in plain):
            # Attention alone has the same names in both; Qwen-Image's is as wide as nothing of Stable Diffusion 3.
            is_wide = name == "Stable Diffusion 3" and 3072 in widths.values()
            kind = "Qwen-Image" if is_wide else name
            # Families of ours whose names are also another model's: what the metadata says counts, then the widths.
            declared = declared_family(metadata)
            ours = [family for family in FAMILIES.values() if family.lora.kind]
            is_ours = any(family.name == declared for family in ours) or (
                declared in (None, kind) and any(_is_of(family, modules) for family in ours)
            )
            return None if is_ours else declared if declared in _WORDS.values() else kind
    if context_widths(widths) == {1024}:
        return "Stable Diffusion 2"
    named = declared_family(metadata)
    return named if named in _WORDS.values() else None


def declared_family(metadata: Mapping[str, str]) -> str | None:
    """The family that the metadata of a LoRA or a checkpoint names, one of ours or another; None if it names none."""
    keys = ("ss_base_model_version", "modelspec.architecture")
    declared = " ".join(str(metadata.get(key, "")) for key in keys).lower()
    ours = [(word, name) for name, family in FAMILIES.items() for word in family.lora.declared]
    return next((name for word, name in [*ours, *_WORDS.items()] if word in declared), None)


def family_of(modules: Modules, metadata: Mapping[str, str]) -> str | None:
    """The family of modules; None if it is unknown."""
    if (named := metadata.get("imprint_family")) in FAMILIES:
        return named
    declared = declared_family(metadata)
    named = declared if declared in FAMILIES else None
    found = possible_families(modules)
    # Families that share names with others: what the metadata says counts.
    if not found or (named is not None and FAMILIES[found[0]].lora.kind):
        return named
    return found[0] if len(found) == 1 else None


def possible_families(modules: Modules) -> list[str]:
    """The families that have all these modules: more than one for a few layers of families that share names."""
    return [name for name, family in FAMILIES.items() if _is_of(family, modules)]


def _is_of(family: Family, modules: Modules) -> bool:
    return family.lora.is_of({in_family(name, family).full: inputs for name, inputs in modules})
