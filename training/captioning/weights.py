"""Finds the weights of a captioner: a folder, or a hub id. Does not import torch."""

import json
from pathlib import Path

from core.errors import BaseModelUnavailable
from training.hub import is_hub_id

_WANTED = ["*.json", "*.safetensors", "*.txt"]
_HUB_TIMEOUT_S = 10.0
KIND = "florence2"


def locate(location: str) -> Path:
    """The folder of a captioner; a hub id is downloaded into the hub's cache unless it is there.

    Raises BaseModelUnavailable for a captioner that does not exist, is incomplete, or is of another kind.
    """
    folder = Path(location).expanduser()
    if not folder.is_dir():
        folder = _from_hub(location)
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise BaseModelUnavailable(f"the captioner in {folder} has no readable config.json") from error
    if kind != KIND:
        raise BaseModelUnavailable(
            f"the captioner in {folder} is a {kind or 'model of unknown kind'}; IMPRINT_CAPTIONER takes Florence-2 in "
            "the form of transformers, such as florence-community/Florence-2-base"
        )
    for name in ("tokenizer.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise BaseModelUnavailable(f"the captioner in {folder} has no {name}")
    if not list(folder.glob("model*.safetensors")):
        raise BaseModelUnavailable(f"the captioner in {folder} has no model.safetensors")
    return folder.resolve()


def _from_hub(location: str) -> Path:
    # Only images that train have the hub's client; every worker imports this module.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if not is_hub_id(location):
        raise BaseModelUnavailable(f"the captioner {location} does not exist: no such folder, and no hub id")
    try:
        return Path(snapshot_download(location, allow_patterns=_WANTED, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        pass
    try:
        return Path(snapshot_download(location, allow_patterns=_WANTED, etag_timeout=_HUB_TIMEOUT_S))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BaseModelUnavailable(
            f"the captioner {location} is not in the cache of this machine, and cannot be downloaded from the model "
            f"hub ({type(error).__name__})"
        ) from error
