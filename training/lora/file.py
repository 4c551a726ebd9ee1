"""LoRA files: written atomically, and checked before an owner is charged. Does not import torch.

diffusers, ComfyUI and AUTOMATIC1111-style loaders all load every key. Programs that find no `.alpha` assume alpha =
rank, and a LoRA of rank 4 and alpha 32 would have an eighth of its strength. So each module has an explicit `.alpha`,
except in families whose readers refuse one: there the scale is multiplied into the up matrices.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import LoraInvalid
from core.files import atomic_file
from training.families.record import Naming
from training.families.registry import FAMILIES
from training.lora.safetensor import Array, Malformed, Tensor, data_offset, pack, tensor, unpack
from training.spec import TrainSpec

DEFAULT_MAX_BYTES = 2 * 2**30


# DoRA's magnitudes, one per output (https://arxiv.org/abs/2402.09353). They also scale the frozen weights, so they are
# always float32.
MAGNITUDE = ".dora_scale"

# The matrices of a module: down [rank, in] and up [out, rank]; for a convolution down has the kernel's dimensions too,
# and up is [out, rank, 1, 1]; for a DoRA also the magnitudes [out].
Matrices = tuple[Array, Array] | tuple[Array, Array, Array]

_TEXT_LAYERS = 6  # modules of each layer of a text encoder: query, key, value, output, and two feed-forward ones
_KERNELS = (((), ()), ((1, 1), (1, 1)), ((3, 3), (1, 1)))  # of down and up
_FLOATS = ("F64", "F32", "F16", "BF16")  # of the files that trainings give

REQUIRED_METADATA = (
    "modelspec.architecture",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_base_model_version",
    "sshs_model_hash",
    "imprint_version",
    "imprint_trigger_word",
    "imprint_recipe",
)


@dataclass(frozen=True)
class LoraReport:
    """The contents of a valid LoRA file."""

    family: str
    rank: int
    alpha: float
    modules: int
    parameters: int
    size_bytes: int
    sha256: str  # of the whole file
    metadata: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, without the metadata."""
        return {name: value for name, value in vars(self).items() if name != "metadata"}


def naming_of(family: str) -> Naming:
    """How the files that a training of the family writes name their tensors."""
    return FAMILIES[family].lora.naming


# ---- writing ---------------------------------------------------------------------------------------------------------


def serialize_lora(
    family: str, weights: Mapping[str, Matrices], alpha: float, metadata: Mapping[str, str],
    conv_alpha: float | None = None,
) -> bytes:  # fmt: skip
    """A LoRA file as bytes; the same arguments give the same bytes.

    weights: the matrices of each module, by diffusers' name. alpha: loaders scale the LoRA by alpha / rank.
    conv_alpha: of 3 x 3 convolutions, if it differs. The hashes by which user interfaces recognise files are added to
    `metadata`.
    """
    naming = naming_of(family)
    tensors: dict[str, Tensor] = {}
    for module, (down, up, *magnitude) in weights.items():
        stem = naming.stem(module)
        own = conv_alpha if conv_alpha is not None and _is_spatial(down.shape) else alpha
        if not naming.alpha:
            up = up * np.float32(own / down.shape[0])
        tensors[stem + naming.down] = tensor(down, naming.kind)
        tensors[stem + naming.up] = tensor(up, naming.kind)
        if naming.alpha:  # always float32: rounded to 16 bits it would change the strength
            tensors[stem + ".alpha"] = tensor(np.asarray(own, np.float32))
        for held in magnitude:  # a column, so that it broadcasts over the outputs of the weights
            tensors[stem + MAGNITUDE] = tensor(np.reshape(held, (-1, *[1] * (down.ndim - 1))).astype(np.float32))
    return pack(tensors, {**metadata, **hashes(tensors, metadata)})


def _is_spatial(shape: tuple[int, ...]) -> bool:
    """Whether a module with a down matrix of this shape is a convolution over several pixels."""
    return shape[2:] not in ((), (1, 1))


def hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`sshs_model_hash` and its legacy form, as in kohya's train_util.precalculate_safetensors_hashes.

    One covers only the data, the other a slice of a file with only the ss_ fields, so edits of other metadata do not
    change them.
    """
    plain = pack(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    whole = hashlib.sha256(memoryview(plain)[data_offset(plain) :]).hexdigest()
    legacy = hashlib.sha256(plain[0x100000:0x110000]).hexdigest()[:8]
    return {"sshs_model_hash": whole, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": f"0x{whole}"}


def write_file(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all, also over a loss of power."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(data)


# ---- checking --------------------------------------------------------------------------------------------------------


def check_lora_file(
    path_or_bytes: Path | str | bytes, *, family: str, rank: int, conv_rank: int | None = None,
    has_text_encoders: bool = False, modules: int | None = None, max_bytes: int = DEFAULT_MAX_BYTES,
) -> LoraReport:  # fmt: skip
    """Check that a file is a complete LoRA of `family` and `rank`, with finite weights and all metadata.

    The file may come from a remote server, so nothing in it is trusted. conv_rank: of 3 x 3 convolutions, if it may
    differ. has_text_encoders: whether it must have all layers of the text encoders, or else none. modules: how many
    the file must have, if that is known. Raises LoraInvalid, which says what is wrong.
    """
    data = read_bytes(path_or_bytes, max_bytes)
    try:
        tensors, metadata = unpack(data)
    except Malformed as error:
        raise LoraInvalid(f"the LoRA file is damaged: {error}") from error
    naming = naming_of(family)
    stems = _stems(tensors, naming, family)
    if modules is not None and len(stems) != modules:
        raise LoraInvalid(f"the LoRA file has {len(stems)} modules; a {family} LoRA with its targets has {modules}")
    _check_text_encoders(stems, naming, has_text_encoders)
    spatial = [stem for stem in stems if conv_rank is not None and _is_spatial(tensors[stem + naming.down].shape)]
    plain = [stem for stem in stems if stem not in set(spatial)]
    _one_alpha(tensors, naming, spatial, conv_rank or rank)
    alpha = _check_metadata(metadata, data, rank, _one_alpha(tensors, naming, plain, rank))
    parameters = sum(tensors[stem + end].elements.size for stem in stems for end in (naming.down, naming.up))
    return LoraReport(
        family, rank, alpha, len(stems), parameters, len(data), hashlib.sha256(data).hexdigest(), metadata
    )


def check_trained(data: bytes, spec: TrainSpec, modules: int | None = None) -> LoraReport:
    """Check that a file is the LoRA of a training. modules: see `check_lora_file`. Raises LoraInvalid."""
    return check_lora_file(
        data, family=spec.family, rank=spec.rank, conv_rank=spec.ranks.spatial,
        has_text_encoders=spec.adapter.text_encoder, modules=modules,
    )  # fmt: skip


def read_bytes(path_or_bytes: Path | str | bytes, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
    """Read a whole file. Raises LoraInvalid if it cannot be read or has more than `max_bytes`."""
    if isinstance(path_or_bytes, bytes):
        size, data = len(path_or_bytes), path_or_bytes
    else:
        path = Path(path_or_bytes)
        try:
            size = path.stat().st_size
            data = path.read_bytes() if size <= max_bytes else b""
        except OSError as error:
            raise LoraInvalid(f"the LoRA file cannot be read: {error.strerror}") from error
    if size > max_bytes:
        raise LoraInvalid(f"the LoRA file has {size} bytes; at most {max_bytes} are accepted")
    return data


def _stems(tensors: Mapping[str, Tensor], naming: Naming, family: str) -> list[str]:
    """The modules of a file. Each must have all its tensors, and a DoRA its magnitudes; others are not allowed."""
    ends: tuple[str, ...] = (naming.down, naming.up, ".alpha") if naming.alpha else (naming.down, naming.up)
    if any(name.endswith(MAGNITUDE) for name in tensors):
        ends = (*ends, MAGNITUDE)
    stems: dict[str, set[str]] = {}
    for name in tensors:
        end = next((end for end in ends if name.endswith(end)), None)
        stem = name.removesuffix(end) if end is not None else name
        if end is None or not _is_module(stem, naming):
            raise LoraInvalid(f"the LoRA file has a tensor {name[:120]!r}, which no {family} LoRA has")
        stems.setdefault(stem, set()).add(end)
    if not stems:
        raise LoraInvalid("the LoRA file has no tensors")
    for stem, found in stems.items():
        missing = [end for end in ends if end not in found]
        if missing:
            raise LoraInvalid(f"the LoRA file lacks {stem}{missing[0]}")
    return list(stems)


def _is_module(stem: str, naming: Naming) -> bool:
    is_of_denoiser = stem.startswith(naming.prefix) and naming.modules.fullmatch(stem, len(naming.prefix)) is not None
    return is_of_denoiser or naming.text_encoder_of(stem) is not None


def _check_text_encoders(stems: Sequence[str], naming: Naming, are_wanted: bool) -> None:
    """Check that a file has all layers of the text encoders if they were trained, and none if not."""
    found: dict[str, list[int]] = {part: [] for part in naming.texts}
    for stem in stems:
        if (part := naming.text_encoder_of(stem)) is not None:
            found[part].append(int(re.findall(r"_layers_(\d+)_", stem)[0]))
    for part, layers in found.items():
        if layers and not are_wanted:
            raise LoraInvalid(f"the LoRA file has {len(layers)} modules of the {part}, which was not trained")
        whole = _TEXT_LAYERS * (max(layers, default=0) + 1)
        if are_wanted and len(layers) != whole:
            raise LoraInvalid(f"the LoRA file has {len(layers)} modules of the {part}, whole layers have {whole}")


def _one_alpha(tensors: Mapping[str, Tensor], naming: Naming, stems: Sequence[str], rank: int) -> float | None:
    """Check modules of one rank and alpha; returns the alpha, None if they have none."""
    alphas = {alpha for stem in stems if (alpha := _check_module(tensors, naming, stem, rank)) is not None}
    if len(alphas) > 1:
        raise LoraInvalid(f"the LoRA file has {len(alphas)} different alphas: {sorted(alphas)[:5]}")
    return alphas.pop() if alphas else None


def _check_module(tensors: Mapping[str, Tensor], naming: Naming, stem: str, rank: int) -> float | None:
    """Check the tensors of one module; returns its alpha, None in a family whose files have none."""
    down, up, alpha = tensors[stem + naming.down], tensors[stem + naming.up], tensors.get(stem + ".alpha")
    # The down matrix of a convolution has the dimensions of its kernel, and the up matrix two of size 1.
    if any(len(part.shape) not in (2, 4) for part in (down, up)) or (down.shape[2:], up.shape[2:]) not in _KERNELS:
        raise LoraInvalid(f"the LoRA file's {stem} has shapes {down.shape} and {up.shape}, which do not fit")
    if down.shape[0] != rank or up.shape[1] != rank:
        raise LoraInvalid(f"the LoRA file's {stem} has rank {down.shape[0]} and {up.shape[1]}, {rank} was asked for")
    if not down.elements.size or not up.elements.size:
        raise LoraInvalid(f"the LoRA file's {stem} is empty")
    parts = [(down, naming.down), (up, naming.up)]
    if alpha is not None:
        parts.append((alpha, ".alpha"))
        if alpha.elements.size != 1:
            raise LoraInvalid(f"the LoRA file's {stem}.alpha is not a single number")
    if (magnitude := tensors.get(stem + MAGNITUDE)) is not None:
        parts.append((magnitude, MAGNITUDE))
        if magnitude.shape[:1] != up.shape[:1] or magnitude.elements.size != up.shape[0]:
            raise LoraInvalid(f"the LoRA file's {stem}{MAGNITUDE} has shape {magnitude.shape}, {up.shape[0]} outputs")
    for part, what in parts:
        if part.kind not in _FLOATS:
            raise LoraInvalid(f"the LoRA file's {stem}{what} has type {part.kind}, which weights cannot have")
        if not np.isfinite(part.floats()).all():
            raise LoraInvalid(f"the LoRA file's {stem}{what} has values that are not finite")
    if alpha is None:
        return None
    value = float(alpha.floats().reshape(-1)[0])
    if value <= 0:
        raise LoraInvalid(f"the LoRA file's {stem}.alpha is {value}")
    return value


def _check_metadata(metadata: Mapping[str, str], data: bytes, rank: int, alpha: float | None) -> float:
    """Check the metadata of a file whose tensors have `alpha`; returns the alpha of the training."""
    missing = [name for name in REQUIRED_METADATA if not metadata.get(name)]
    if missing:
        raise LoraInvalid(f"the LoRA file's metadata lacks {', '.join(missing)}")
    if metadata["ss_network_dim"] != str(rank):
        named = metadata["ss_network_dim"][:20]
        raise LoraInvalid(f"the LoRA file's metadata names rank {named}, but its tensors have rank {rank}")
    try:
        named_alpha = float(metadata["ss_network_alpha"])
        json.loads(metadata["imprint_recipe"])
    except (ValueError, RecursionError) as error:
        raise LoraInvalid("the LoRA file's metadata has an alpha or a recipe that cannot be read") from error
    if alpha is not None and np.float32(named_alpha) != np.float32(alpha):  # a tensor holds 0.1 rounded to float32
        raise LoraInvalid(f"the LoRA file's metadata names alpha {named_alpha}, but its tensors have alpha {alpha}")
    if metadata["sshs_model_hash"] != hashlib.sha256(memoryview(data)[data_offset(data) :]).hexdigest():
        raise LoraInvalid("the LoRA file's tensors do not match the hash in its metadata")
    return named_alpha if alpha is None else alpha
