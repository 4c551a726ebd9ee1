"""Which base models this machine has, or can download."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from huggingface_hub import constants

from core.errors import ImprintError
from training import families
from training.families.registry import BASE_MODELS, FAMILIES
from training.families.weights import folders
from training.families.weights.parts import locate
from training.hub import is_hub_id

Presence = Literal["here", "download"]


def find(names: Iterable[str], configured: Mapping[str, str]) -> dict[str, Presence]:
    """The base models of the named families: those that are here, and those of the model hub that are downloaded first.

    `configured`: IMPRINT_BASE_MODELS. Only base models with a short name are looked for.
    """
    wanted = {name for name in names if FAMILIES[name].code is not None}
    found: dict[str, Presence] = {}
    for name, base in BASE_MODELS.items():
        if base.family in wanted and (presence := _presence(configured.get(name) or base.location, base.family)):
            found[name] = presence
    return found


def _presence(location: str, family: str) -> Presence | None:
    parts = families.find(family).parts
    path = Path(location).expanduser()
    if not path.exists() and is_hub_id(location):
        if folders.cached(location, parts) is not None:
            return "here"
        return None if constants.HF_HUB_OFFLINE else "download"
    try:
        locate(location, parts)
    except ImprintError:
        return None
    return "here"
