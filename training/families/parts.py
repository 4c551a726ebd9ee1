"""Finding a base model and loading its parts. All faults become BaseModelUnavailable: what, where, what to do.

Only safetensors are read: a pickle is a program, and base models come from strangers.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError

from core.errors import BaseModelUnavailable
from training.families import folders, single_file, soundness

_ALIGNMENT = 64  # bytes: what PyTorch's CPU allocator gives


def locate(base_model: str, parts: Sequence[str]) -> Path:
    """Where a base model is, given as a folder, a single file or a hub id; what the hub has is fetched into its cache.

    Raises BaseModelUnavailable if it is nowhere, not complete, or neither in diffusers' layout with safetensors nor one
    such file.
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
            f"the base model {base_model} cannot be read ({error.strerror}): the user that training workers run as "
            "must be able to, the folders above it included"
        ) from error
    if not folders.HUB_ID.match(base_model) or path.is_absolute():
        raise BaseModelUnavailable(f"the base model {base_model} is not there: no such folder, and no hub id")
    return folders.from_hub(base_model, parts)


def load_part(kind: Any, folder: Path, part: str, dtype: torch.dtype | None = None) -> Any:
    """One part of the base model, of a class `kind` of the libraries; with `dtype`, a network, frozen, in eval mode.

    `folder` is what `locate` gave: for a single file its parts come out of it, or from where `single_file` says.

    Raises BaseModelUnavailable for a part that is damaged, of another shape than its configuration says, or incomplete.
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
        soundness.check_files(folder / part, folders.WEIGHTS[part])
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
    return _ready(network)


def _ready(network: torch.nn.Module) -> torch.nn.Module:
    """The part frozen, in eval mode, all its weights in memory of PyTorch's own."""
    # Weights that need no conversion are views into the mapped file, wherever its header's length puts them, and a
    # CPU's kernels choose by alignment in which order they sum: one base in two files would give LoRAs of other bits.
    for weights in (*network.parameters(), *network.buffers()):
        if weights.data_ptr() % _ALIGNMENT:
            weights.data = weights.data.clone()
    return network.requires_grad_(False).eval()


def config_of(folder: Path, part: str) -> dict[str, Any]:
    """The configuration of one part of what `locate` gave. Raises BaseModelUnavailable if it cannot be read."""
    if not folder.is_file():
        return folders.config_of(folder, part)
    home = single_file.folder_of(folder, part)
    return folders.config_of(home, part) if home is not None else single_file.read(folder).config(part)


def vae_number(folder: Path, name: str) -> float:
    """A number in the VAE's configuration, or the library's default; 0 for none. The VAE itself is not loaded."""
    default = inspect.signature(AutoencoderKL.__init__).parameters[name].default
    return float(config_of(folder, "vae").get(name, default) or 0.0)


def weights_bytes(base: Path, part: str) -> int:
    """The size of one part's weights on disk; of a base model in a single file, the file's."""
    if base.is_file():
        return base.stat().st_size
    return sum(path.stat().st_size for path in (base / part).glob("*.safetensors"))
