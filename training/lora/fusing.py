"""LoRA under the names of a model's own code, in which query, key and value are one layer.

The change of a fused layer has the changes of its parts in its rows, one below the other. So the down matrices of the
parts stand below each other, and the up matrices on a diagonal; the rank is the sum of their ranks. Parts that share a
down matrix, as those of a file that was split before, keep their rank.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from core.errors import LoraInvalid
from training.families.record import Family, own_name
from training.lora.reading import Module
from training.lora.safetensor import Array, tensor


@dataclass(frozen=True)
class _Place:
    """Where a layer with diffusers' name is in the model's own code."""

    name: str  # of the layer there
    part: int
    rows: tuple[int, ...]  # of its parts, relative to each other


def fused(modules: Iterable[Module], family: Family) -> list[Module]:
    """The modules under the names of the family's own code, with their scale in the up matrices.

    Raises LoraInvalid for a module that the code has no name for, and for a DoRA.
    """
    groups: dict[str, dict[int, Module]] = {}
    rows: dict[str, tuple[int, ...]] = {}
    for module in modules:
        if module.magnitude is not None:
            raise LoraInvalid(f"{module.name.full} has DoRA lengths, which no program reads for this family")
        place = _place(module.name.module, family)
        groups.setdefault(place.name, {})[place.part] = module
        rows[place.name] = place.rows
    return [_joined(name, parts, rows[name]) for name, parts in groups.items()]


def _place(module: str, family: Family) -> _Place:
    found = own_name(module, family.lora.original)
    if found is None:
        raise LoraInvalid(f"{module} has no name in the own code of {family.title}, only in diffusers: convert to peft")
    own, part, names = found
    return _Place(own, part, tuple(family.lora.rows(names)))


def _joined(name: str, parts: dict[int, Module], shares: tuple[int, ...]) -> Module:
    first = next(iter(parts.values()))
    made = replace(first, name=replace(first.name, module=name, written=name), alpha=None)
    ups = {part: module.up.floats() * np.float32(module.scale) for part, module in parts.items()}
    if len(shares) == 1:
        return replace(made, up=tensor(ups[0], first.up.kind))
    unit = len(ups[min(ups)]) // shares[min(ups)]
    if any(len(up) != unit * shares[part] for part, up in ups.items()):
        raise LoraInvalid(f"the parts of {name} have {[len(up) for up in ups.values()]} outputs, which do not fit")
    downs = {part: module.down.floats() for part, module in parts.items()}
    is_shared = len({down.tobytes() for down in downs.values()}) == 1
    rank = first.rank if is_shared else sum(module.rank for module in parts.values())
    up: Array = np.zeros((sum(shares) * unit, rank), np.float32)
    column = 0
    for part in sorted(parts):
        width, row = parts[part].rank, sum(shares[:part]) * unit
        up[row : row + len(ups[part]), column : column + width] = ups[part]
        column += 0 if is_shared else width
    down = downs[min(parts)] if is_shared else np.concatenate([downs[part] for part in sorted(parts)])
    return replace(made, down=tensor(down, first.down.kind), up=tensor(up, first.up.kind))
