"""Single-file checkpoints of the tiny base models, as the original training code would have written them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from training.families.record import SingleFile
from training.families.registry import FAMILIES
from training.families.weights.folders import weights_of
from training.lora.safetensor import Tensor, pack, tensor, unpack


def exported(folder: Path, out: Path, family: str, *, only: tuple[str, ...] = (), **metadata: str) -> Path:
    """The base model in `folder` as one file `out`; beside it, in `.parts/`, what a single file does not hold.

    only: the parts with weights that go into the file; the others go beside it.
    """
    tensors: dict[str, Tensor] = {}
    layout = FAMILIES[family].single_file
    assert layout is not None
    beside = out.with_suffix(".parts")
    for part in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        is_inside = weights_of(part) is not None and part in (only or layout.prefixes)
        shutil.copytree(
            folder / part, beside / part, ignore=shutil.ignore_patterns("*.safetensors") if is_inside else None
        )
        if is_inside:
            tensors |= _renamed(folder / part, layout, part)
    out.write_bytes(pack(tensors, metadata))
    return out


def _renamed(folder: Path, layout: SingleFile, part: str) -> dict[str, Tensor]:
    config = json.loads((folder / "config.json").read_text())
    held, _ = unpack((folder / f"{weights_of(part)}.safetensors").read_bytes())
    prefix = layout.prefixes[part][0]
    fused: dict[str, dict[int, Any]] = {}
    made = {}
    for name, weights in held.items():
        found = layout.sources[part](name, config)
        values = weights.floats()
        if found.rows is not None:
            fused.setdefault(prefix + found.name, {})[found.rows[0]] = values
        elif found.is_swapped:
            made[prefix + found.name] = tensor(np.concatenate(np.split(values, 2)[::-1]))
        elif found.is_transposed:
            made[prefix + found.name] = tensor(np.ascontiguousarray(values.T))
        elif part == "vae" and ".mid.attn_1." in found.name and values.ndim == 2:
            made[prefix + found.name] = tensor(values[:, :, None, None])
        else:
            made[prefix + found.name] = tensor(values)
    return made | {name: tensor(np.concatenate([rows[at] for at in sorted(rows)])) for name, rows in fused.items()}
