"""A base model from one `.safetensors` file, as people share them: read as strictly as a folder, and offline.

`MODEL.safetensors` holds weights under the names of the original training code; their shapes are those of the family's
standard model. What else a model needs may lie beside it in `MODEL.parts/`, in diffusers' layout: a part with weights
there takes the place of the file's, a `config.json` or a scheduler there that of our own. What is in neither
(tokenizers, and all but the denoiser of a file that is only that) comes from the family's home on the hub, or its
cache.
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
from training.base_family import family_of_names, has_part
from training.families import folders, soundness
from training.families.checkpoint_configs import CONFIGS, HOMES
from training.families.checkpoint_names import LEFT_OVER, PREFIXES, Source, source
from training.lora import safetensor

# The largest of the families is 25 GB in float32 with all that belongs to it.
MAX_BYTES = 48 * 2**30
_WEIGHTS = ("F64", "F32", "F16", "BF16")
_V = ("v", "v_prediction", "v-prediction")


@dataclass(frozen=True)
class Checkpoint:
    """What the header of a single file tells."""

    path: Path
    family: str
    kinds: Mapping[str, str]  # of every tensor
    prefixes: Mapping[str, str]  # of the parts that it holds
    prediction: str
    is_zero_snr: bool  # its noise ends in noise alone

    @property
    def beside(self) -> Path:
        """Where parts may lie that the file lacks or that take the place of its own."""
        return self.path.with_suffix(".parts")

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part that the file holds. Raises BaseModelUnavailable if it has no such part."""
        if (self.beside / part / "config.json").is_file():
            return folders.config_of(self.beside, part)
        if part not in CONFIGS[self.family]:
            raise BaseModelUnavailable(f"the base model {self.path} is one of {self.family}, which has no {part}")
        return dict(CONFIGS[self.family][part])


def read(path: Path) -> Checkpoint:
    """The header of the file, checked. Raises BaseModelUnavailable, which says what is wrong and what to do."""
    found = path.stat()
    return _read(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=8)
def _read(path: Path, _changed: int, size: int) -> Checkpoint:
    if path.suffix != ".safetensors":
        raise BaseModelUnavailable(
            f"the base model {path} is no .safetensors file: others, such as .ckpt, are programs and are not read. "
            "Get it as .safetensors, or convert it where you trust it"
        )
    if size > MAX_BYTES:
        raise BaseModelUnavailable(f"the base model {path} has {size} bytes, over the {MAX_BYTES} of any family")
    try:
        kinds, metadata = safetensor.check_layout(path)
    except (safetensor.Malformed, OSError) as error:
        raise BaseModelUnavailable(
            f"the base model {path} is not sound: {error}; fetch it again, from whom you trust"
        ) from error
    family = family_of_names(path, kinds)
    prefixes = {
        part: prefix
        for part, forms in PREFIXES[family].items()
        for prefix in [next((form for form in forms if has_part(kinds, part, form)), None)]
        if prefix is not None
    }
    is_v = "v_pred" in kinds or metadata.get("modelspec.prediction_type", "").lower() in _V
    return Checkpoint(path, family, kinds, prefixes, "v_prediction" if is_v else "epsilon", "ztsnr" in kinds)


def require(path: Path, parts: Sequence[str]) -> None:
    """Refuse a file that is none, of another family, or with strange tensors. Raises BaseModelUnavailable."""
    held = read(path)
    if strange := [part for part in parts if part not in CONFIGS[held.family] and not part.startswith("tokenizer")]:
        raise BaseModelUnavailable(f"the base model {path} is one of {held.family}, which has no {strange[0]}")
    prefixes = tuple(held.prefixes.values())
    refuse_unknown(held, [name for name in held.kinds if not name.startswith(prefixes)])


def refuse_unknown(held: Checkpoint, names: Sequence[str]) -> None:
    """Refuse tensors that nothing here reads, but for those that checkpoints are known to carry beside the weights."""
    if unknown := [name for name in names if not LEFT_OVER.fullmatch(name)]:
        raise BaseModelUnavailable(
            f"the base model {held.path} has {len(unknown)} weights that it should not have, such as "
            f"{min(unknown)[:120]!r}"
        )


def folder_of(path: Path, part: str) -> Path | None:
    """The folder in diffusers' layout that has `part` in place of the file; None where the file has it, or we do.

    Raises BaseModelUnavailable for a part that is nowhere.
    """
    held = read(path)
    if folders.has_part(held.beside, part):
        return held.beside
    if part in held.prefixes or part == "scheduler":
        return None
    try:
        return folders.from_hub(HOMES[held.family], [part])
    except BaseModelUnavailable as error:
        raise BaseModelUnavailable(
            f"the file {path} has no {part}, and {HOMES[held.family]} is not at hand to take it from: give this "
            f"machine access to the model hub once, or put it, in diffusers' layout, into {held.beside / part}"
        ) from error


def scheduler(path: Path) -> dict[str, Any]:
    """The scheduler's configuration, where none lies beside the file."""
    held = read(path)
    config = dict(CONFIGS[held.family]["scheduler"])
    if held.family != "z-image":
        config |= {"prediction_type": held.prediction, "rescale_betas_zero_snr": held.is_zero_snr}
    return config


def load(kind: Any, path: Path, part: str, dtype: torch.dtype) -> Any:
    """One part out of the file, still mapped: `kind` is diffusers' or transformers' class.

    Raises BaseModelUnavailable.
    """
    held = read(path)
    if part not in held.prefixes:
        raise BaseModelUnavailable(f"the base model {path} has no {part}: of another family, or not complete")
    config = held.config(part)
    try:
        network = empty(kind, config)
        wanted = network.state_dict()
        network.load_state_dict(_weights(held, part, config, wanted, dtype), strict=True, assign=True)
        soundness.check_loaded(network, {"missing_keys": [], "unexpected_keys": []})
    except soundness.Unsound as error:
        raise BaseModelUnavailable(f"the {part} of the base model {path} {error}: fetch it again") from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise BaseModelUnavailable(
            f"the {part} of the base model {path} cannot be loaded ({type(error).__name__}: {str(error)[:200]}): "
            "fetch it again, or check that it belongs to this family"
        ) from error
    return network


def empty(kind: Any, config: Mapping[str, Any]) -> Any:
    """The module without weights, so that nothing is allocated before shapes were compared; buffers are real."""
    with init_empty_weights(include_buffers=False):
        if hasattr(kind, "config_class"):
            return kind(kind.config_class(**config))
        return kind.from_config(dict(config))


def _weights(
    held: Checkpoint, part: str, config: Mapping[str, Any], wanted: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The part's weights by the module's own names, in `dtype`. Raises Unsound for one that is not as it should be."""
    prefix = held.prefixes[part]
    sources = {name: source(held.family, part, name, config) for name in wanted}
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
                    f"keeps {name} as {kind}: training needs weights of 16 or 32 bits, not a shrunken file"
                )
            made[name] = _taken(file, prefix, found, name, tuple(wanted[name].shape)).to(dtype)
    return made


def _taken(file: Any, prefix: str, found: Source, name: str, shape: tuple[int, ...]) -> Tensor:
    """One weight as the module wants it. Shapes are compared before anything is read."""
    part = file.get_slice(prefix + found.name)
    held = tuple(part.get_shape())
    rows = shape[0]
    expected = shape if found.third is None else (3 * rows, *shape[1:])
    if found.is_transposed:
        expected = shape[::-1]
    if held != expected and held != (*expected, 1, 1) and (*held, 1, 1) != expected:
        raise soundness.Unsound(f"has {name} as {held}, where a model of this family has {expected}")
    taken: Tensor = part[:] if found.third is None else part[found.third * rows : (found.third + 1) * rows]
    return taken.t().contiguous() if found.is_transposed else taken.reshape(shape)


def files(path: Path, parts: Sequence[str]) -> list[Path]:
    """All files that training reads of this model, the single one first."""
    homes = {part: folder_of(path, part) for part in parts}
    others = [(homes[part] or read(path).beside) / part for part in parts]
    return [path, *(file for folder in others for file in sorted(folder.glob("*")) if file.is_file())]
