"""A base model from one `.safetensors` file, checked as strictly as a folder.

`MODEL.safetensors` has weights under the names of the original training code, with the shapes of the family's standard
model. The folder `MODEL.parts/` beside it, in diffusers' layout, may have other parts: weights there replace those of
the file, and a `config.json` or a scheduler there replaces the standard one. Parts in neither (tokenizers, or
everything except the denoiser) come from the family's standard model on the hub, or from the hub's cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor

from core.errors import BaseModelUnavailable
from training.base_family import family_of_names
from training.families.record import Family, Source
from training.families.registry import FAMILIES
from training.families.weights import folders, soundness
from training.families.weights.checkpoint_names import LEFT_OVER
from training.lora import safetensor

# The largest family's model has 25 GB in float32 with all parts.
MAX_BYTES = 48 * 2**30
_WEIGHTS = ("F64", "F32", "F16", "BF16")
_V = ("v", "v_prediction", "v-prediction")


@dataclass(frozen=True)
class CheckpointFile:
    """The facts in the header of a single file."""

    path: Path
    family: Family
    kinds: Mapping[str, str]  # the dtype of each tensor
    prefixes: Mapping[str, str]  # of the names, for each part that the file has
    prediction: str  # epsilon or v_prediction
    is_zero_snr: bool  # whether the last step of its noise schedule is pure noise

    @property
    def beside(self) -> Path:
        """The folder for parts that the file lacks, or that replace its own."""
        return self.path.with_suffix(".parts")

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part. Raises BaseModelUnavailable if the family has no such part."""
        if (self.beside / part / "config.json").is_file():
            return folders.config_of(self.beside, part)
        if part not in self.family.configs:
            raise BaseModelUnavailable(
                f"the base model {self.path} is of family {self.family.name}, which has no {part}"
            )
        layout = self.family.single_file
        assert layout is not None  # noqa: S101 - see `read`
        return {**self.family.configs[part], **layout.says(part, self.kinds)}


def read(path: Path) -> CheckpointFile:
    """Read and check the header of the file. Raises BaseModelUnavailable."""
    found = path.stat()
    return _read(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=8)
def _read(path: Path, _changed: int, size: int) -> CheckpointFile:
    if path.suffix != ".safetensors":
        raise BaseModelUnavailable(
            f"the base model {path} is not a .safetensors file: others, such as .ckpt, can run code and are not read. "
            "Download it as .safetensors, or convert it if you trust it"
        )
    if size > MAX_BYTES:
        raise BaseModelUnavailable(f"the base model {path} has {size} bytes; at most {MAX_BYTES} are accepted")
    try:
        kinds, metadata = safetensor.check_layout(path)
    except (safetensor.Malformed, OSError) as error:
        raise BaseModelUnavailable(
            f"the base model {path} is not sound: {error}; download it again from a source that you trust"
        ) from error
    family = FAMILIES[family_of_names(path, kinds)]
    layout = family.single_file
    assert layout is not None  # noqa: S101 - only families with a layout are found
    prefixes = {
        part: prefix
        for part, forms in layout.prefixes.items()
        for prefix in [next((form for form in forms if any(form + mark in kinds for mark in layout.marks[part])), None)]
        if prefix is not None
    }
    is_v = "v_pred" in kinds or metadata.get("modelspec.prediction_type", "").lower() in _V
    return CheckpointFile(path, family, kinds, prefixes, "v_prediction" if is_v else "epsilon", "ztsnr" in kinds)


def require(path: Path, parts: Sequence[str]) -> None:
    """Check that a file is a base model with these parts and without unknown tensors. Raises BaseModelUnavailable."""
    held = read(path)
    if strange := [part for part in parts if part not in held.family.classes]:
        raise BaseModelUnavailable(f"the base model {path} is of family {held.family.name}, which has no {strange[0]}")
    prefixes = tuple(held.prefixes.values())
    refuse_unknown(held, [name for name in held.kinds if not name.startswith(prefixes)])


def refuse_unknown(held: CheckpointFile, names: Sequence[str]) -> None:
    """Raise BaseModelUnavailable if any of the names is neither a weight nor known from checkpoints."""
    layout = held.family.single_file
    assert layout is not None  # noqa: S101 - see `read`
    known = [LEFT_OVER, layout.left_over] if layout.left_over is not None else [LEFT_OVER]
    if unknown := [name for name in names if not any(pattern.fullmatch(name) for pattern in known)]:
        raise BaseModelUnavailable(
            f"the base model {held.path} has {len(unknown)} unknown weights, such as {min(unknown)[:120]!r}"
        )


def folder_of(path: Path, part: str) -> Path | None:
    """The folder in diffusers' layout to load `part` from; None: load it from the file, or use the standard scheduler.

    Raises BaseModelUnavailable for a part that cannot be found.
    """
    held = read(path)
    if folders.has_part(held.beside, part):
        return held.beside
    if part in held.prefixes or part == "scheduler":
        return None
    try:
        return folders.from_hub(held.family.home, [part])
    except BaseModelUnavailable as error:
        raise BaseModelUnavailable(
            f"the file {path} has no {part}, and it cannot be taken from {held.family.home}: give this machine "
            f"access to the model hub once, or put it, in diffusers' layout, into {held.beside / part}"
        ) from error


def scheduler(path: Path) -> dict[str, Any]:
    """The scheduler's configuration for a file without one beside it."""
    held = read(path)
    config = dict(held.family.configs["scheduler"])
    if held.family.denoiser == "unet":
        config |= {"prediction_type": held.prediction, "rescale_betas_zero_snr": held.is_zero_snr}
    return config


def load(kind: Any, path: Path, part: str, dtype: torch.dtype) -> Any:
    """Load one part from the file as `kind`, a class of diffusers or transformers. Weights may stay memory-mapped.

    Raises BaseModelUnavailable.
    """
    held = read(path)
    if part not in held.prefixes:
        raise BaseModelUnavailable(f"the base model {path} has no {part}: it is of another family, or incomplete")
    config = held.config(part)
    try:
        network = empty(kind, config)
        wanted = network.state_dict()
        network.load_state_dict(_weights(held, part, config, wanted, dtype), strict=True, assign=True)
        soundness.check_loaded(network, {"missing_keys": [], "unexpected_keys": []})
    except soundness.Unsound as error:
        raise BaseModelUnavailable(f"the {part} of the base model {path} {error}: download it again") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise BaseModelUnavailable(
            f"the {part} of the base model {path} cannot be loaded ({type(error).__name__}: {str(error)[:200]}): "
            "download it again, or check that it belongs to this family"
        ) from error
    return network


def empty(kind: Any, config: Mapping[str, Any]) -> Any:
    """A module with weights on the meta device: no memory is used before shapes are compared. Buffers are real."""
    with init_empty_weights(include_buffers=False):
        if hasattr(kind, "config_class"):
            return kind(kind.config_class(**config))
        return kind.from_config(dict(config))


def _weights(
    held: CheckpointFile, part: str, config: Mapping[str, Any], wanted: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The part's weights by the module's names, in `dtype`. Raises Unsound for missing or wrong ones."""
    prefix = held.prefixes[part]
    layout = held.family.single_file
    assert layout is not None  # noqa: S101 - see `read`
    found_by = layout.sources[part]
    sources = {name: Source(name) if prefix + name in held.kinds else found_by(name, config) for name in wanted}
    if missing := sorted(name for name, found in sources.items() if prefix + found.name not in held.kinds):
        raise soundness.Unsound(f"lacks {len(missing)} weights, such as {missing[0]}")
    made = {}
    used = {prefix + found.name for found in sources.values()}
    refuse_unknown(held, [name for name in held.kinds if name.startswith(prefix) and name not in used])
    with safe_open(held.path, "pt") as file:
        for name, found in sources.items():
            kind = held.kinds[prefix + found.name]
            if kind not in _WEIGHTS:
                raise soundness.Unsound(
                    f"has {name} as {kind}: training needs weights of 16 or 32 bits, not a compressed file"
                )
            made[name] = _taken(file, prefix, found, name, tuple(wanted[name].shape)).to(dtype)
    return made


def _taken(file: Any, prefix: str, found: Source, name: str, shape: tuple[int, ...]) -> Tensor:
    """One weight in the shape of the module. Compares shapes before it reads any data. Raises Unsound."""
    part = file.get_slice(prefix + found.name)
    held = tuple(part.get_shape())
    rows = shape[0]
    begin, end, shares = found.rows or (0, 1, 1)
    total = rows * shares // (end - begin)
    expected = (total, *shape[1:])
    if found.is_transposed:
        expected = shape[::-1]
    if held != expected and held != (*expected, 1, 1) and (*held, 1, 1) != expected:
        raise soundness.Unsound(f"has {name} with shape {held}; models of this family have {expected}")
    taken: Tensor = part[:] if found.rows is None else part[total * begin // shares : total * end // shares]
    if found.is_swapped:
        taken = torch.cat(taken.chunk(2)[::-1])
    return taken.t().contiguous() if found.is_transposed else taken.reshape(shape)


def files(path: Path, parts: Sequence[str]) -> list[Path]:
    """All files that training reads of this model, the single file first."""
    homes = {part: folder_of(path, part) for part in parts}
    others = [(homes[part] or read(path).beside) / part for part in parts]
    return [path, *(file for folder in others for file in sorted(folder.glob("*")) if file.is_file())]
