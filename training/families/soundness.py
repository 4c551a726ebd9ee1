"""Whether a base model's weights are what they should be: base models come from strangers, as LoRA files do.

Before the libraries open a file, its header is read as strictly as a LoRA file's; after they have loaded it, every
weight must have been there, known and finite. Faults are said as `Unsound`, which the loader makes an error of ours.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from training.lora import safetensor

# What the libraries themselves leave over in sound files: a table of 0, 1, 2 …, and the head that words are read from.
_LEFT_OVER = re.compile(r"(.*\.)?(position_ids|lm_head\.weight)")


class Unsound(ValueError):
    """Says what is wrong with the weights."""


def check_files(folder: Path, weights: str) -> None:
    """See that every file of `weights` in `folder` is safetensors with a sound header. Raises Unsound, OSError.

    An index may name files in the same folder only, and none that is not safetensors: libraries would take the name's
    word for what is in it.
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
    """See that what the libraries loaded is whole, known and finite. Raises Unsound."""
    if missing := report["missing_keys"]:
        # The libraries would go on with random numbers in their place.
        raise Unsound(f"lacks {len(missing)} weights, such as {min(missing)}")
    if unknown := [name for name in report["unexpected_keys"] if not _LEFT_OVER.fullmatch(name)]:
        raise Unsound(f"has {len(unknown)} weights that it should not have, such as {min(unknown)[:120]!r}")
    for name, part in network.state_dict().items():
        # The sum first: one pass over memory, where `isfinite` writes as much again.
        if part.is_floating_point() and not part.sum(dtype=torch.float32).isfinite() and not part.isfinite().all():
            raise Unsound(f"has weights that are not finite, such as in {name}")
