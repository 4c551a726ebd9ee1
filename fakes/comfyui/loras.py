"""Match LoRA keys as ComfyUI's loader does: known keys are used, others are logged and ignored.

The key map of each family is in its record, as recorded from ComfyUI's code.

A safetensors file starts with the length of its JSON header (8 bytes, little-endian); the header names the tensors.
"""

import json
import logging
import struct
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.families.registry import FAMILIES

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
    names = FAMILIES[base].lora
    known = names.comfyui_published or names.comfyui
    for key in keys:
        module = next((key.removesuffix(end) for end in _ENDS if key.endswith(end)), None)
        if module is not None and known is not None and known.fullmatch(module):
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
