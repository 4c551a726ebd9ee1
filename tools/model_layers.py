"""Writes the layers that ai-toolkit could train of each transformer into fakes/ai_toolkit/layers.json, from diffusers'
modules: `python -m tools.model_layers` after a family was added. tests/unit/ai_toolkit/test_convert.py compares them.

For each family: a list of its blocks, how many there are, and the inputs and outputs of each linear layer.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from training.families.record import Family, own_name
from training.families.registry import FAMILIES, trained_here
from training.families.weights.parts import class_of

_FILE = Path(__file__).resolve().parent.parent / "fakes" / "ai_toolkit" / "layers.json"


def layers(family: Family) -> list[tuple[str, int, Mapping[str, list[int]]]]:
    """The lists of blocks with layers that get a LoRA: the name, the number of blocks, and all layers of one."""
    with torch.device("meta"):
        network = class_of(family.classes[family.denoiser]).from_config(dict(family.configs[family.denoiser]))
    linears = {name: part for name, part in network.named_modules() if isinstance(part, torch.nn.Linear)}
    lists = {name.split(".")[0] for name in linears if re.fullmatch(family.targets["all"], name)}
    blocks: dict[str, dict[str, list[int]]] = {}
    for name, layer in linears.items():
        if name.split(".")[0] in lists:
            block, _, inside = re.sub(r"\.(\d+)\.", r".\1/", _name(name, family), count=1).partition("/")
            found = blocks.setdefault(block, {}).setdefault(inside, [layer.in_features, 0])
            found[1] += layer.out_features
    made: list[tuple[str, int, Mapping[str, list[int]]]] = []
    for block, held in blocks.items():
        name = block.rpartition(".")[0]
        if made and made[-1][0] == name and made[-1][2] == held:
            made[-1] = (name, made[-1][1] + 1, held)
        else:
            made.append((name, 1, held))
    return made


def _name(module: str, family: Family) -> str:
    """The name of a layer in ai-toolkit's files: that of the model's own code if its names begin as there."""
    is_own = family.lora.is_fused and family.toolkit is not None and family.toolkit.prefix == "diffusion_model."
    found = own_name(module, family.lora.original) if is_own else None
    return module if found is None else found[0]


def main() -> None:
    """Write the file."""
    known: dict[str, Any] = {
        name: layers(FAMILIES[name]) for name in trained_here() if FAMILIES[name].denoiser == "transformer"
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(held)}" for name, held in known.items())
    _FILE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
