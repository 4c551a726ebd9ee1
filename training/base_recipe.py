"""The default recipe that a base model carries: `recipe.json` in its folder, or in the `.parts` folder beside its file.

A request's own options come first, then this recipe, then that of the family. Does not import torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import SpecInvalid
from training.spec import GROUPS, TrainSpec

_NAME, _MAX_BYTES = "recipe.json", 2**16
_NOT_IN_IT = {"base_model", "family", "trigger_word", "class_word", "seed", "backend", "captions", "learns"}


def with_recipe_of(location: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options `given` of a training on the base model at `location`, with the base model's defaults for the rest.

    Raises SpecInvalid for a recipe that cannot be read.
    """
    carried = _read(Path(location).expanduser())
    if given.get("optimizer", carried.get("optimizer")) != carried.get("optimizer"):
        carried.pop("learning_rate", None)  # the rate of one optimizer means nothing to another
    if given.get("epochs") is not None:
        carried.pop("max_steps", None)  # it would replace the epochs that were asked for
    made = {**carried, **given}
    for name in GROUPS:
        if isinstance(carried.get(name), dict) and isinstance(given.get(name), dict):
            made[name] = {**carried[name], **given[name]}
    return made


def _read(place: Path) -> dict[str, Any]:
    try:
        path = (place if place.is_dir() else place.with_suffix(".parts")) / _NAME
        if not path.is_file():
            return {}
        found = json.loads(path.read_bytes()[:_MAX_BYTES])
    except (OSError, ValueError, RecursionError) as error:
        raise SpecInvalid.of({"base_model": f"its {_NAME} cannot be read ({type(error).__name__})"}) from error
    known = set(TrainSpec.model_fields) - _NOT_IN_IT
    if not isinstance(found, dict) or not set(found) <= known:
        raise SpecInvalid.of({"base_model": f"its {_NAME} may only have {', '.join(sorted(known))}"})
    return found
