"""Families of base models: a record of each without torch (`registry`), and a module with what a training calls.

`find` imports that module, and with it torch.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from core.errors import BaseModelUnavailable
from training.families.registry import FAMILIES

if TYPE_CHECKING:
    from training.families.family import FamilyCode

# diffusers and peft import bitsandbytes if it is installed, and with it PyTorch's compiler. That takes two seconds, and
# only a quantised base needs it (see quantised.py), so block the import; not after diffusers or peft has been imported,
# because they rely on what they found.
if not {"diffusers", "peft"} & set(sys.modules):
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


_found: dict[str, "FamilyCode"] = {}


def find(name: str) -> "FamilyCode":
    """The code of the family with that name. Raises BaseModelUnavailable for one that trains only on rented servers."""
    record = FAMILIES[name]
    if record.code is None:
        raise BaseModelUnavailable(f"{name} is trained only on rented GPUs: use the ai-toolkit backend")
    if name not in _found or _found[name].record is not record:
        _found[name] = import_module(record.code).family(record)
    return _found[name]
