"""One module per family of base models, and the table that finds them: torch comes with a family, not with it."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.families.family import Family

# diffusers and peft import bitsandbytes wherever it is installed, and with it PyTorch's compiler: two seconds that only
# a quantised base needs, see quantised.py. Too late once they are imported: they count on what they found.
if not {"diffusers", "peft"} & set(sys.modules):
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]

_MODULES = {"sd15": "sd15", "sdxl": "sdxl", "z-image": "z_image"}


def find(name: str) -> "Family":
    """The family of that name; KeyError for one that there is not (a TrainSpec cannot name such)."""
    module = import_module(f"training.families.{_MODULES[name]}")
    found: Family = module.FAMILY
    return found
