"""Base models as folders in diffusers' layout: local ones, or from the model hub's cache."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from core.errors import BaseModelUnavailable

_TEXT_ENCODER = re.compile(r"text_encoder(_\d)?")
# Time limit for the hub's first response. Without it, a machine without network hangs for minutes.
_HUB_TIMEOUT_S = 10.0


def weights_of(part: str) -> str | None:
    """The name of a part's weight files in diffusers' layout, before `.safetensors`; None: it has no weights."""
    if _TEXT_ENCODER.fullmatch(part):
        return "model"
    return "diffusion_pytorch_model" if part in ("unet", "transformer", "vae") else None


def from_hub(name: str, parts: Sequence[str]) -> Path:
    """The base model `name` from the hub's cache, downloaded if it is not complete there.

    Raises BaseModelUnavailable if the hub does not provide it.
    """
    folder = cached(name, parts)
    if folder is not None:
        return folder
    try:
        folder = Path(snapshot_download(name, allow_patterns=_wanted(parts), etag_timeout=_HUB_TIMEOUT_S))
        if halves := [part for part in parts if weights_of(part) and not has_part(folder, part)]:
            # Some repositories have no others.
            patterns = [f"{part}/{weights_of(part)}*.fp16*" for part in halves]
            snapshot_download(name, allow_patterns=patterns, etag_timeout=_HUB_TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BaseModelUnavailable(
            f"the base model {name} is not in the cache of this machine, and cannot be downloaded from the model hub "
            f"({type(error).__name__}): give this machine access to the hub (and a token, if the model requires one), "
            "or use a folder in diffusers' layout",
            {"base_model": name, "offline": os.environ.get("HF_HUB_OFFLINE", "")},
        ) from error
    require(folder, parts)
    return folder


def cached(name: str, parts: Sequence[str]) -> Path | None:
    """The base model in the hub's cache on this machine; None if it is missing or incomplete."""
    try:
        folder = Path(snapshot_download(name, allow_patterns=_wanted(parts), local_files_only=True))
        require(folder, parts)
    except (LocalEntryNotFoundError, BaseModelUnavailable, HFValidationError):
        return None
    return folder


def _wanted(parts: Sequence[str]) -> list[str]:
    return ["model_index.json", *(pattern for part in parts for pattern in _patterns(part))]


def _patterns(part: str) -> list[str]:
    weights = weights_of(part)
    if weights is None:
        return [f"{part}/*"]
    return [
        f"{part}/config.json",
        f"{part}/{weights}.safetensors",
        f"{part}/{weights}-*-of-*.safetensors",
        f"{part}/{weights}.safetensors.index.json",
    ]


def require(folder: Path, parts: Sequence[str]) -> None:
    """Check that a folder has everything that training needs, before minutes go into loading the rest.

    Raises BaseModelUnavailable.
    """
    if not (folder / "model_index.json").is_file():
        raise BaseModelUnavailable(
            f"the folder {folder} has no model_index.json: it is not a base model in diffusers' layout"
        )
    for part in parts:
        if not (folder / part).is_dir():
            raise BaseModelUnavailable(
                f"the base model in {folder} has no {part}: it is of another family, or incomplete"
            )
        weights = weights_of(part)
        if weights is None or list((folder / part).glob(f"{weights}*.safetensors")):
            continue
        if list((folder / part).glob("*.bin")):
            raise BaseModelUnavailable(
                f"the base model in {folder} has its {part} only as a pickle (.bin), which is not read because it can "
                "run code: if you trust it, load it with diffusers once and save it with save_pretrained(folder, "
                "safe_serialization=True)"
            )
        raise BaseModelUnavailable(f"the base model in {folder} has no {weights}.safetensors in {part}")


def variant(folder: Path, part: str) -> str | None:
    """`fp16` if a part has its weights only in this variant, as in many downloads; else None."""
    weights = [path.name for path in (folder / part).glob(f"{weights_of(part)}*.safetensors")]
    return "fp16" if weights and all(".fp16" in name for name in weights) else None


def config_of(folder: Path, part: str) -> dict[str, Any]:
    """The configuration of one part. Raises BaseModelUnavailable if it cannot be read."""
    try:
        config = json.loads((folder / part / "config.json").read_text())
        if not isinstance(config, dict):
            raise TypeError
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BaseModelUnavailable(f"the base model in {folder} has no readable {part}/config.json") from error
    return config


def has_part(folder: Path, part: str) -> bool:
    """Whether `folder` has a part: its weights, or for a part without weights any JSON file."""
    weights = weights_of(part)
    return any((folder / part).glob(f"{weights}*.safetensors" if weights is not None else "*.json"))


def scheduler_class(folder: Path) -> str | None:
    """The class name in the scheduler's configuration; None if it has none of diffusers' form."""
    try:
        name = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) and re.fullmatch(r"\w+Scheduler", name) else None
