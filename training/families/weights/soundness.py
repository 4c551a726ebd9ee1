"""Check the weights of a base model: base models come from strangers, as LoRA files do.

Before the libraries open a file, its header is checked as strictly as that of a LoRA file. After they have loaded it,
no weight may be missing, unknown or not finite. Faults raise `Unsound`, which the loader translates.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from training.lora import safetensor

# Tensors in valid files that the libraries do not load: position tables, and the head of a language model.
_LEFT_OVER = re.compile(r"(.*\.)?(position_ids|lm_head\.weight)")


class Unsound(ValueError):
    """The weights are damaged, incomplete or not finite. The message is a predicate, such as "lacks 3 weights"."""


def check_files(folder: Path, weights: str) -> None:
    """Check that every file of `weights` in `folder` is safetensors with a valid header. Raises Unsound, OSError.

    An index may only name safetensors files in the same folder: the libraries would trust a file's suffix.
    """
    for index in sorted(folder.glob(f"{weights}*.index.json")):
        try:
            named = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Unsound(f"{index.name} is no index of weights") from error
        for name in sorted(named, key=str):
            if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
                raise Unsound(f"{index.name} names {str(name)[:80]!r}, which is no safetensors file of this folder")
            if not (folder / name).is_file():
                raise Unsound(f"{index.name} names {name}, which is not there")
            _check_file(folder / name)
    for path in sorted(folder.glob(f"{weights}*.safetensors")):
        _check_file(path)


def _check_file(path: Path) -> None:
    try:
        safetensor.check_layout(path)
    except safetensor.Malformed as error:
        raise Unsound(f"{path.name} is not sound: {error}") from error


def check_loaded(network: Any, report: dict[str, Any]) -> None:
    """Check that the loaded weights are complete, known and finite. Raises Unsound."""
    if missing := report["missing_keys"]:
        # The libraries would use random numbers instead.
        raise Unsound(f"lacks {len(missing)} weights, such as {min(missing)}")
    if unknown := [name for name in report["unexpected_keys"] if not _LEFT_OVER.fullmatch(name)]:
        raise Unsound(f"has {len(unknown)} unknown weights, such as {min(unknown)[:120]!r}")
    for name, part in network.state_dict().items():
        # The sum first: it only reads memory, but `isfinite` also writes a tensor.
        if part.is_floating_point() and not part.sum(dtype=torch.float32).isfinite() and not part.isfinite().all():
            raise Unsound(f"has weights that are not finite, such as in {name}")
