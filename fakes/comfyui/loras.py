"""Match LoRA keys as ComfyUI's loader does: known keys are used, others are logged and ignored.

The key maps are recorded from ComfyUI's `model_lora_keys_unet`, `model_lora_keys_clip`, `unet_to_diffusers` and
`z_image_to_diffusers` (the last in versions since December 2025), for the models that Imprint trains.

A safetensors file starts with the length of its JSON header (8 bytes, little-endian); the header names the tensors.
"""

import json
import logging
import re
import struct
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
LOG: deque[dict[str, str]] = deque(maxlen=300)  # as many lines as a real server keeps

# What a module's tensors end in, by method. `lora_magnitude_vector` is not among them.
_ENDS = (
    ".lora_up.weight", ".lora_down.weight", ".lora_mid.weight", ".lora_A.weight", ".lora_B.weight", "_lora.up.weight",
    "_lora.down.weight", ".lora.up.weight", ".lora.down.weight", ".lora_linear_layer.up.weight",
    ".lora_linear_layer.down.weight", ".lora_A.default.weight", ".lora_B.default.weight", ".alpha", ".dora_scale",
    ".reshape_weight", ".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b", ".hada_t1", ".hada_t2", ".lokr_w1",
    ".lokr_w2", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2", ".a1.weight", ".a2.weight",
    ".b1.weight", ".b2.weight", ".oft_blocks", ".w_norm", ".b_norm", ".diff", ".diff_b", ".set_weight",
)  # fmt: skip

# Blocks with transformers, by diffusers' names and by the original ones.
_BLOCKS = {
    "sd15": (r"(down_blocks\.[012]|mid_block|up_blocks\.[123])",
             r"(input_blocks\.[124578]|middle_block|output_blocks\.([3-9]|1[01]))"),
    "sdxl": (r"(down_blocks\.[12]|mid_block|up_blocks\.[01])",
             r"(input_blocks\.[4578]|middle_block|output_blocks\.[0-5])"),
}  # fmt: skip
_IN_TRANSFORMER = r"(norm|proj_in|proj_out|transformer_blocks\.\d+\.(norm[123]|ff\.net\.(0\.proj|2)|{attention}))"
_ATTENTION = r"attn[12]\.to_(q|k|v|out\.0)"
_OLD_ATTENTION = r"attn[12]\.processor\.to_(q|k|v|out)"
_OTHER_MODULES = (
    r"(down_blocks\.\d|mid_block|up_blocks\.\d)\.(resnets\.\d\.(norm[12]|conv[12]|time_emb_proj|conv_shortcut)|"
    r"(downsamplers|upsamplers)\.0\.conv)|conv_in|conv_out|conv_norm_out|(time|add)_embedding\.linear_[12]"
)
_OTHER_ORIGINAL = (
    r"((input|output)_blocks\.\d+\.[012]|middle_block\.[02])\.(in_layers\.[02]|emb_layers\.1|out_layers\.[03]|"
    r"skip_connection|op|conv)|input_blocks\.0\.0|out\.[02]|time_embed\.[02]|label_emb\.0\.[02]"
)
_CLIP = r"text_model\.encoder\.layers\.\d+\.(mlp\.fc[12]|self_attn\.(q|k|v|out)_proj)"

_Z_IMAGE_LAYER = r"(layers|context_refiner|noise_refiner)\.\d+\."
_Z_IMAGE_SHARED = r"attention_norm[12]|ffn_norm[12]|feed_forward\.w[123]|adaLN_modulation\.0"
_Z_IMAGE_EMBEDDERS = r"cap_embedder\.[01]|t_embedder\.mlp\.[02]"
_Z_IMAGE = (
    rf"{_Z_IMAGE_LAYER}(attention\.(norm_[qk]|to_(q|k|v|out\.0))|{_Z_IMAGE_SHARED})|{_Z_IMAGE_EMBEDDERS}|"
    r"all_final_layer\.2-1\.(linear|adaLN_modulation\.1)|all_x_embedder\.2-1"
)
_Z_IMAGE_ORIGINAL = (
    rf"{_Z_IMAGE_LAYER}(attention\.([qk]_norm|qkv|out)|{_Z_IMAGE_SHARED})|{_Z_IMAGE_EMBEDDERS}|"
    r"final_layer\.(linear|adaLN_modulation\.1)|x_embedder"
)

# FLUX.1 and FLUX.2: the makers' names, and diffusers' by `flux_to_diffusers`, which has neither FLUX.2's modulations
# nor the embedding of times. Qwen-Image has diffusers' names.
_FLUX2_ORIGINAL = (
    r"double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj|norm\.(query|key)_norm)|mlp\.[02])|"
    r"single_blocks\.\d+\.(linear[12]|norm\.(query|key)_norm)|img_in|txt_in|time_in\.(in|out)_layer|"
    r"final_layer\.(linear|adaLN_modulation\.1)|(double_stream_modulation_(img|txt)|single_stream_modulation)\.lin"
)
_FLUX2 = (
    r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|norm_(added_)?[qk])|"
    r"ff(_context)?\.linear_(in|out))|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out|norm_[qk])|"
    r"x_embedder|context_embedder|proj_out"
)
_FLUX1_ORIGINAL = (
    r"double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj|norm\.(query|key)_norm)|mlp\.[02]|mod\.lin)|"
    r"single_blocks\.\d+\.(linear[12]|modulation\.lin|norm\.(query|key)_norm)|img_in|txt_in|"
    r"(time|vector|guidance)_in\.(in|out)_layer|final_layer\.(linear|adaLN_modulation\.1)"
)
_FLUX1 = (
    r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|norm_(added_)?[qk])|"
    r"ff(_context)?\.net\.(0\.proj|2)|norm1(_context)?\.linear)|"
    r"single_transformer_blocks\.\d+\.(attn\.(to_[qkv]|norm_[qk])|proj_mlp|proj_out|norm\.linear)|"
    r"x_embedder|context_embedder|proj_out"
)
_QWEN_IMAGE = (
    r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|norm_(added_)?[qk])|"
    r"(img|txt)_(mlp\.net\.(0\.proj|2)|mod\.1))|img_in|txt_in|txt_norm|proj_out|norm_out\.linear|"
    r"time_text_embed\.timestep_embedder\.linear_[12]"
)


def _underscored(pattern: str) -> str:
    return pattern.replace(r"\.", "_")


def _unet(kind: str) -> str:
    blocks, original = _BLOCKS[kind]
    inside = _IN_TRANSFORMER.replace("{attention}", _ATTENTION)
    named = rf"{blocks}\.attentions\.\d\.{inside}|{_OTHER_MODULES}"
    old = rf"{blocks}\.attentions\.\d\.{_IN_TRANSFORMER.replace('{attention}', _OLD_ATTENTION)}|{_OTHER_MODULES}"
    own = rf"{original}\.1\.{inside}|{_OTHER_ORIGINAL}"
    encoders = r"lora_te1?_" if kind == "sd15" else r"lora_te[12]?_"
    dotted = r"text_encoder\." if kind == "sd15" else r"text_encoder(_2)?\."
    return (
        rf"lora_unet_({_underscored(named)}|{_underscored(own)})|lycoris_({_underscored(named)})|"
        rf"diffusion_model\.({own})|(unet\.)?({old})|{encoders}({_underscored(_CLIP)})|{dotted}({_CLIP})"
    )


_KNOWN = {
    "sd15": re.compile(_unet("sd15")),
    "sdxl": re.compile(_unet("sdxl")),
    "z-image": re.compile(
        rf"(diffusion_model\.|transformer\.)?({_Z_IMAGE})|lycoris_({_underscored(_Z_IMAGE)})|"
        rf"diffusion_model\.({_Z_IMAGE_ORIGINAL})|lora_unet_({_underscored(_Z_IMAGE_ORIGINAL)})"
    ),
    "flux2-klein-4b": re.compile(
        rf"diffusion_model\.({_FLUX2_ORIGINAL})|lora_unet_({_underscored(_FLUX2_ORIGINAL)})|"
        rf"(transformer\.)?({_FLUX2})|lycoris_({_underscored(_FLUX2)})"
    ),
    "flux1": re.compile(
        rf"diffusion_model\.({_FLUX1_ORIGINAL})|lora_unet_({_underscored(_FLUX1_ORIGINAL)})|"
        rf"(transformer\.)?({_FLUX1})|lycoris_({_underscored(_FLUX1)})"
    ),
    "qwen-image": re.compile(
        rf"(diffusion_model\.|transformer\.)?({_QWEN_IMAGE})|(lycoris_|lora_unet_)({_underscored(_QWEN_IMAGE)})"
    ),
}


class UnreadableLora(Exception):
    """A file that is not safetensors: the prompt fails at its loader node."""


def match_lora_keys(path: Path, base: str) -> tuple[int, list[str]]:
    """The number of modules that a model of kind `base` has, and the unknown keys, which are logged."""
    used, missed = match([key for key in header(path) if key != "__metadata__"], base)
    for key in missed:
        log.warning("lora key not loaded: %s", key)
        LOG.append({"t": datetime.now(UTC).isoformat(), "m": f"lora key not loaded: {key}"})
    return len(used), missed


def match(keys: list[str], base: str) -> tuple[set[str], list[str]]:
    """The modules that a model of kind `base` takes from these keys, and the keys that it ignores."""
    used, missed = set[str](), list[str]()
    for key in keys:
        module = next((key.removesuffix(end) for end in _ENDS if key.endswith(end)), None)
        if module is not None and _KNOWN[base].fullmatch(module):
            used.add(module)
        else:
            missed.append(key)
    return used, missed


def header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file. Raises UnreadableLora."""
    data = path.read_bytes()
    try:
        (length,) = struct.unpack("<Q", data[:8])
        return dict(json.loads(data[8 : 8 + length]))
    except (struct.error, ValueError, TypeError, OverflowError):
        raise UnreadableLora("Error while deserializing header: HeaderTooLarge") from None
