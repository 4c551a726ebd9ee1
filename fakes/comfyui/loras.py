"""Match LoRA keys as ComfyUI's loader does: known keys are used, others are logged and ignored.

A safetensors file starts with the length of its JSON header (8 bytes, little-endian); the header names the tensors.
"""

import json
import logging
import re
import struct
from pathlib import Path

log = logging.getLogger(__name__)

_ENDS = (".lora_up.weight", ".lora_down.weight", ".lora_A.weight", ".lora_B.weight", "_lora.up.weight",
         "_lora.down.weight", ".lora.up.weight", ".lora.down.weight", ".lora_linear_layer.up.weight",
         ".lora_linear_layer.down.weight", ".lora_A.default.weight", ".lora_B.default.weight", ".alpha")  # fmt: skip

# Modules by kind of base model. For sd15 and sdxl, attention under diffusers' names (unet.….attn1.to_q) is unknown,
# while other layers of the same file are known: it loads in part, and only the log says so.
_KNOWN = {
    "unet": re.compile(
        r"lora_unet_\w+|diffusion_model\.[\w.]+|lora_te[12]?_text_model_\w+|text_encoder(_2)?\.text_model\.[\w.]+|"
        r"(unet\.)?(down_blocks|mid_block|up_blocks)\.(?!.*\.attn[12]\.)[\w.]+|"
        r"(unet\.)?[\w.]+\.processor\.to_(q|k|v|out)"
    ),
    "z-image": re.compile(r"(diffusion_model\.|transformer\.)?layers\.\d+\.[\w.]+|lycoris_\w+"),
}


class UnreadableLora(Exception):
    """A file that is not safetensors: the prompt fails at its loader node."""


def match_lora_keys(path: Path, base: str) -> tuple[int, list[str]]:
    """The number of modules that a model of kind `base` has, and the unknown keys, which are logged."""
    used, missed = set[str](), list[str]()
    for key in _keys(path):
        module = next((key.removesuffix(end) for end in _ENDS if key.endswith(end)), None)
        if module is not None and _KNOWN[base].fullmatch(module):
            used.add(module)
        else:
            missed.append(key)
            log.warning("lora key not loaded: %s", key)
    return len(used), missed


def _keys(path: Path) -> list[str]:
    data = path.read_bytes()
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        return [key for key in header if key != "__metadata__"]
    except (struct.error, ValueError, TypeError, OverflowError):
        raise UnreadableLora("Error while deserializing header: HeaderTooLarge") from None
