"""LoRA files as written by ai-toolkit: key names, metadata and hash."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training.families.record import AiToolkit
from training.families.registry import FAMILIES
from training.lora.safetensor import Array, Malformed, Tensor, data_offset, pack, tensor, unpack

_KINDS = {
    "float32": "F32", "fp32": "F32", "float": "F32", "float16": "F16", "fp16": "F16", "bf16": "BF16", "bfloat16": "BF16"
}  # fmt: skip


def family_of_config(process: Mapping[str, Any]) -> str:
    """The family for a job's architecture. Raises KeyError if the fake does not support it."""
    arch = str(process["model"]["arch"])
    known = {one.arch: name for name, family in FAMILIES.items() if (one := family.toolkit) is not None}
    return known.get(arch) or known[arch.split(":")[0]]


def toolkit_of_config(process: Mapping[str, Any]) -> AiToolkit:
    """How the real server trains that family."""
    known = FAMILIES[family_of_config(process)].toolkit
    assert known is not None  # noqa: S101 - it was found by it
    return known


def serialize_toolkit_lora(
    process: Mapping[str, Any], name: str, weights: Mapping[str, tuple[Array, Array]], *, step: int, epoch: int = 0
) -> bytes:
    """A file with `weights` (by module name without prefix: down, up) after `step` steps.

    All tensors have the precision of the job's `save.dtype`; peft's format (transformers) has no alpha.
    """
    family, known = family_of_config(process), toolkit_of_config(process)
    naming, kind = FAMILIES[family].lora.naming, _KINDS[str(process["save"]["dtype"])]
    tensors: dict[str, Tensor] = {}
    for module, (down, up) in weights.items():
        stem = known.prefix + (module.replace(".", "_") if naming.underscores else module)
        tensors[stem + naming.down], tensors[stem + naming.up] = tensor(down, kind), tensor(up, kind)
        if naming.underscores:
            tensors[stem + ".alpha"] = tensor(np.asarray(process["network"]["linear_alpha"], np.float32), kind)
    metadata = {
        "ss_output_name": name,
        "ss_base_model_version": known.version,
        "name": name,
        "version": "1.0",
        "training_info": json.dumps({"step": step, "epoch": epoch}),
        "software": json.dumps(
            {"name": "ai-toolkit", "repo": "https://github.com/ostris/ai-toolkit", "version": "fake"}
        ),
        "format": "pt",
    }
    plain = pack(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    whole = hashlib.sha256(memoryview(plain)[data_offset(plain) :]).hexdigest()
    return pack(tensors, {**metadata, "sshs_model_hash": whole, "sshs_legacy_hash": whole[:8]})


def convert_our_lora(process: Mapping[str, Any], name: str, ours: bytes, *, step: int) -> bytes:
    """Convert a LoRA file from Imprint's training loop to ai-toolkit's format."""
    naming = FAMILIES[family_of_config(process)].lora.naming
    tensors, _ = unpack(ours)
    stems = [held.removesuffix(naming.down) for held in tensors if held.endswith(naming.down)]
    weights = {
        stem.removeprefix(naming.prefix): (tensors[stem + naming.down].floats(), tensors[stem + naming.up].floats())
        for stem in stems
    }
    return serialize_toolkit_lora(process, name, weights, step=step)


def step_in(folder: Path) -> int:
    """The step of the newest LoRA file in a folder, from which a trainer resumes; 0 if there is none."""
    found = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_ctime)
    if not found:
        return 0
    try:
        return int(json.loads(unpack(found[-1].read_bytes())[1]["training_info"])["step"])
    except (Malformed, KeyError, ValueError, TypeError):
        return 0
