"""One module per family of base models, and the function that finds them. Importing a family imports torch."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.families.family import Family

# diffusers and peft import bitsandbytes if it is installed, and with it PyTorch's compiler. That takes two seconds, and
# only a quantised base needs it (see quantised.py), so block the import; not after diffusers or peft has been imported,
# because they rely on what they found.
if not {"diffusers", "peft"} & set(sys.modules):
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]

_MODULES = {"sd15": "sd15", "sdxl": "sdxl", "z-image": "z_image"}


def find(name: str) -> "Family":
    """The family with that name. Raises KeyError for an unknown one, which a TrainSpec cannot have."""
    module = import_module(f"training.families.{_MODULES[name]}")
    found: Family = module.FAMILY
    return found
