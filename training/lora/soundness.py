"""The one check of a LoRA file's tensors, of whatever origin: before it is shown, converted, drawn with or merged."""

from collections.abc import Iterable

import numpy as np

from core.errors import LoraInvalid
from training.lora.reading import Module, ParsedLora
from training.lora.safetensor import FLOATS, Tensor

_SHOWN = 5  # problems of one kind that are listed one by one


def problems(lora: ParsedLora) -> list[str]:
    """What makes the file unusable for every program; [] for a sound file, whatever is in it."""
    modules = [*lora.modules.values(), *lora.others.values()]
    found = [*_some(lora.problems), *_some(_module_faults(modules)), *_some(_number_faults(lora.tensors))]
    if not modules and not lora.methods:
        found.append("it contains no LoRA")
    return found


def require_sound(lora: ParsedLora) -> None:
    """Raises LoraInvalid for a broken file."""
    if found := problems(lora):
        more = f", and {len(found) - 1} more" * (len(found) > 1)
        raise LoraInvalid(f"the LoRA file is broken: {found[0]}{more}")


def _module_faults(modules: Iterable[Module]) -> Iterable[str]:
    """Shapes that do not fit each other, and alphas that no program can use."""
    for module in modules:
        down, up, name = module.down.shape, module.up.shape, module.name.full[:160]
        if not 2 <= len(down) <= 5 or not 2 <= len(up) <= 5 or down[0] != up[1] or 0 in (*down, *up):
            yield f"{name} has shapes {list(down)} and {list(up)}, which do not fit"
        elif module.magnitude is not None and module.axis is None:
            yield (
                f"{name} has DoRA lengths of shape {list(module.magnitude.shape)} for {up[0]} outputs and {down[1]} "
                "inputs"
            )
        if module.alpha is not None and not (np.isfinite(module.alpha) and module.alpha > 0):
            yield f"{name} has alpha {module.alpha}"
        if any(part.kind not in FLOATS for part in (module.down, module.up)):
            yield f"{name} has integers instead of weights"


def _number_faults(tensors: dict[str, Tensor]) -> Iterable[str]:
    for name, part in tensors.items():
        if part.kind in FLOATS and not np.isfinite(part.floats()).all():
            yield f"{name[:160]} has values that are not finite"


def _some(faults: Iterable[str]) -> list[str]:
    """The first few faults of one kind, and the number of others."""
    held = list(faults)
    return held if len(held) <= _SHOWN else [*held[:_SHOWN], f"and {len(held) - _SHOWN} more like this"]
