"""Finding a base model and loading its parts. All faults become BaseModelUnavailable: what, where, what to do.

Only safetensors are read: a pickle is a program, and base models come from strangers.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError

from core.errors import BaseModelUnavailable
from training.families import soundness

# Parts with weights, and the name that their weights have in diffusers' layout (before `.safetensors`).
_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
# How long the hub may take to answer at all; without it a machine without a network hangs for minutes.
_HUB_TIMEOUT_S = 10.0


def locate(base_model: str, parts: Sequence[str]) -> Path:
    """The folder of a base model, given as a folder or a hub id; what the hub has is fetched into its cache.

    Raises BaseModelUnavailable if it is nowhere, not complete, or not in diffusers' layout with safetensors.
    """
    path = Path(base_model).expanduser()
    if path.is_dir():
        _require(path, parts)
        return path.resolve()
    if path.is_file():
        raise BaseModelUnavailable(
            f"the base model {base_model} is a single file; training reads diffusers' folder layout. Convert it once: "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    if not _HUB_ID.match(base_model) or path.is_absolute():
        raise BaseModelUnavailable(f"the base model {base_model} is not there: no such folder, and no hub id")
    return _from_hub(base_model, parts)


def _from_hub(name: str, parts: Sequence[str]) -> Path:
    """What the cache has, if that is all we need; else what the hub has."""
    wanted = ["model_index.json", *(pattern for part in parts for pattern in _patterns(part))]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        _require(folder, parts)
        return folder
    except (LocalEntryNotFoundError, BaseModelUnavailable, HFValidationError):
        pass  # not here, or not whole: the hub may help
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=_HUB_TIMEOUT_S))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BaseModelUnavailable(
            f"the base model {name} is not in the cache of this machine, and the model hub did not give it "
            f"({type(error).__name__}). Give this machine access to the hub (and a token, where the model asks for "
            "one), or a folder in diffusers' layout in its place",
            {"base_model": name, "offline": os.environ.get("HF_HUB_OFFLINE", "")},
        ) from error
    _require(folder, parts)
    return folder


def _patterns(part: str) -> list[str]:
    weights = _WEIGHTS.get(part)
    if weights is None:
        return [f"{part}/*"]
    return [
        f"{part}/config.json",
        f"{part}/{weights}.safetensors",
        f"{part}/{weights}-*-of-*.safetensors",
        f"{part}/{weights}.safetensors.index.json",
    ]


def _require(folder: Path, parts: Sequence[str]) -> None:
    """Refuse a folder that lacks what we need, before minutes go into loading the rest."""
    if not (folder / "model_index.json").is_file():
        raise BaseModelUnavailable(f"the folder {folder} has no model_index.json: no base model in diffusers' layout")
    for part in parts:
        if not (folder / part).is_dir():
            raise BaseModelUnavailable(f"the base model in {folder} has no {part}: of another family, or not complete")
        weights = _WEIGHTS.get(part)
        if weights is None or list((folder / part).glob(f"{weights}*.safetensors")):
            continue
        if list((folder / part).glob("*.bin")):
            raise BaseModelUnavailable(
                f"the base model in {folder} has its {part} as a pickle only (.bin), which is not read: load and "
                "save_pretrained it once with safe_serialization=True where you trust it"
            )
        raise BaseModelUnavailable(f"the base model in {folder} has no {weights}.safetensors in {part}")


def load_part(kind: Any, folder: Path, part: str, dtype: torch.dtype | None = None) -> Any:
    """One part of the base model, of a class `kind` of the libraries; with `dtype`, a network, frozen, in eval mode.

    Raises BaseModelUnavailable for a part that is damaged, of another shape than its configuration says, or incomplete.
    """
    try:
        if dtype is None:
            return kind.from_pretrained(folder / part, local_files_only=True)
        soundness.check_files(folder / part, _WEIGHTS[part])
        network, report = kind.from_pretrained(
            folder / part,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            variant=_variant(folder, part),
            output_loading_info=True,
        )
    except soundness.Unsound as error:
        raise BaseModelUnavailable(
            f"the {part} of the base model in {folder} cannot be loaded: {error}; fetch it again, from whom you trust"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise BaseModelUnavailable(
            f"the {part} of the base model in {folder} cannot be loaded ({type(error).__name__}: {str(error)[:200]}): "
            "fetch it again, or check that it belongs to this family"
        ) from error
    try:
        soundness.check_loaded(network, report)
    except soundness.Unsound as error:
        raise BaseModelUnavailable(f"the {part} of the base model in {folder} {error}: fetch it again") from error
    return network.requires_grad_(False).eval()


def _variant(folder: Path, part: str) -> str | None:
    """`fp16` for a folder that holds its weights in that form only, as many downloads do."""
    plain = folder / part / f"{_WEIGHTS[part]}.safetensors"
    half = folder / part / f"{_WEIGHTS[part]}.fp16.safetensors"
    return "fp16" if half.is_file() and not plain.is_file() else None


def config_of(folder: Path, part: str) -> dict[str, Any]:
    """The configuration of one part. Raises BaseModelUnavailable if it cannot be read."""
    try:
        config = json.loads((folder / part / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise BaseModelUnavailable(f"the base model in {folder} has no readable {part}/config.json") from error
    return dict(config)
