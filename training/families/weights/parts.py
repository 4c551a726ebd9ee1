"""Find a base model and load its parts. Every fault becomes a BaseModelUnavailable that says what to do.

Only safetensors files are read: pickles can run code, and base models come from strangers.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL
from safetensors import SafetensorError

from core.errors import BaseModelUnavailable
from training.families.weights import folders, single_file, soundness
from training.hub import is_hub_id

_ALIGNMENT = 64  # bytes, as in PyTorch's CPU allocator


def locate(base_model: str, parts: Sequence[str]) -> Path:
    """The folder or the single file of a base model, which is given as a folder, a file or a hub id.

    Downloads a hub id into the hub's cache. Raises BaseModelUnavailable if the model does not exist, is incomplete, or
    is neither a folder in diffusers' layout with safetensors files nor a single safetensors file.
    """
    path = Path(base_model).expanduser()
    try:
        if path.is_dir():
            folders.require(path, parts)
            return path.resolve()
        if path.is_file():
            single_file.require(path.resolve(), parts)
            return path.resolve()
    except PermissionError as error:
        raise BaseModelUnavailable(
            f"the base model {base_model} cannot be read ({error.strerror}): give the user of the training workers "
            "permission to read it and the folders above it"
        ) from error
    if not is_hub_id(base_model):
        raise BaseModelUnavailable(f"the base model {base_model} does not exist: no such folder or file, and no hub id")
    return folders.from_hub(base_model, parts)


def load_part(kind: Any, folder: Path, part: str, dtype: torch.dtype | None = None) -> Any:
    """Load one part of a base model as `kind`, a class of diffusers or transformers.

    folder: the result of `locate`; parts that a single file lacks come from where `single_file` says. dtype: of a
    network, which is frozen and in eval mode; None for a tokenizer or scheduler.

    Raises BaseModelUnavailable for a part that is damaged, incomplete, or has other shapes than its configuration.
    """
    if folder.is_file():
        home = single_file.folder_of(folder, part)
        if home is None:
            if dtype is None:
                return kind.from_config(single_file.scheduler(folder))
            return _ready(single_file.load(kind, folder, part, dtype))
        folder = home
    try:
        if dtype is None:
            return kind.from_pretrained(folder / part, local_files_only=True)
        soundness.check_files(folder / part, str(folders.weights_of(part)))
        network, report = kind.from_pretrained(
            folder / part,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            variant=folders.variant(folder, part),
            output_loading_info=True,
        )
    except soundness.Unsound as error:
        raise BaseModelUnavailable(
            f"the {part} of the base model in {folder} cannot be loaded: {error}; download it again from a source that "
            "you trust"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise BaseModelUnavailable(
            f"the {part} of the base model in {folder} cannot be loaded ({type(error).__name__}: {str(error)[:200]}): "
            "download it again, or check that it belongs to this family"
        ) from error
    try:
        soundness.check_loaded(network, report)
    except soundness.Unsound as error:
        raise BaseModelUnavailable(f"the {part} of the base model in {folder} {error}: download it again") from error
    return _ready(network)


def class_of(name: str) -> Any:
    """A class of diffusers or transformers by the name in a record, such as `diffusers.AutoencoderKL`."""
    library, _, kind = name.partition(".")
    return getattr({"diffusers": diffusers, "transformers": transformers}[library], kind)


def _ready(network: torch.nn.Module) -> torch.nn.Module:
    """The network frozen, in eval mode, with all weights aligned in memory."""
    # Weights that need no conversion are views into the mapped file, at an offset that depends on its header. CPU
    # kernels choose their order of summation by alignment, so the same base in two files would give different bits.
    for weights in (*network.parameters(), *network.buffers()):
        if weights.data_ptr() % _ALIGNMENT:
            weights.data = weights.data.clone()
    return network.requires_grad_(False).eval()


def config_of(folder: Path, part: str) -> dict[str, Any]:
    """The configuration of one part. folder: the result of `locate`. Raises BaseModelUnavailable."""
    if not folder.is_file():
        return folders.config_of(folder, part)
    home = single_file.folder_of(folder, part)
    return folders.config_of(home, part) if home is not None else single_file.read(folder).config(part)


def vae_number(folder: Path, name: str) -> float:
    """A number in the VAE's configuration, or diffusers' default; 0 for null. Does not load the VAE."""
    default = inspect.signature(AutoencoderKL.__init__).parameters[name].default
    return float(config_of(folder, "vae").get(name, default) or 0.0)


def weights_bytes(base: Path, part: str) -> int:
    """The size of one part's weights on disk; for a base model in a single file, the size of the file."""
    if base.is_file():
        return base.stat().st_size
    return sum(path.stat().st_size for path in (base / part).glob("*.safetensors"))
