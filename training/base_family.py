"""Find the family of a base model from the header of its file or the index of its folder. Does not import torch."""

import json
from collections.abc import Mapping
from pathlib import Path

from core.errors import BaseModelUnavailable
from training.families.record import Family
from training.families.registry import FAMILIES
from training.lora import safetensor


def family_of_names(path: Path, kinds: Mapping[str, str]) -> str:
    """The family of a single file, from the dtypes of its tensors by name.

    Raises BaseModelUnavailable if it is of no supported family, and says what the file is, if known.
    """
    if any(name.startswith("cond_stage_model.model.") for name in kinds):
        raise BaseModelUnavailable(f"the base model {path} is a Stable Diffusion 2, which is not supported")
    layouts = {name: family.single_file for name, family in FAMILIES.items() if family.single_file is not None}
    if (found := next((name for name, layout in layouts.items() if layout.is_of(kinds)), None)) is not None:
        return found
    if any(name.endswith((".lora_down.weight", ".lora_A.weight")) for name in kinds):
        raise BaseModelUnavailable(f"the base model {path} is a LoRA: a LoRA is trained on a base model")
    raise BaseModelUnavailable(
        f"the base model {path} has no names of a checkpoint of {', '.join(layouts)} (its first is "
        f"{min(kinds, default='none at all')[:120]!r}): it may be only a part of a model, such as a VAE"
    )


def _likeness(folder: Path, family: Family) -> int:
    """How much of the configuration of a family's standard denoiser a folder has: sizes of one model are families."""
    try:
        config = json.loads((folder / family.denoiser / "config.json").read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(family.configs[family.denoiser]))
        return sum(name in config and config[name] == value for name, value in wanted.items())
    except (OSError, ValueError, TypeError):
        return 0


def family_of_base(location: str) -> str | None:
    """The family of a base model given as a file or folder; None for a hub id, or if it is unknown.

    Never raises: faults of a file or folder are reported when it is loaded.
    """
    path = Path(location).expanduser()
    try:
        if path.is_dir():
            index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
            pipeline = index.get("_class_name")
            known = [family for family in FAMILIES.values() if family.pipeline == pipeline]
            return max(known, key=lambda family: _likeness(path, family)).name if known else None
        if path.suffix == ".safetensors" and path.is_file():
            return family_of_names(path, safetensor.check_layout(path)[0])
    except (OSError, ValueError, AttributeError, RecursionError, BaseModelUnavailable):
        return None
    return None
