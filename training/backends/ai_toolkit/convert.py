"""Convert ai-toolkit's LoRA files to Imprint's: key names, an explicit alpha, metadata.

Files for sd15 and sdxl have kohya's format: `lora_unet_…` with `.lora_down.weight`, `.lora_up.weight` and `.alpha` (in
the precision of the file), scale alpha / rank. Files for transformers have peft's format: `diffusion_model.…` or
`transformer.…` with `.lora_A.weight` and `.lora_B.weight` and without alpha, trained at scale 1, so alpha = rank. Names
of a model's own code become diffusers' where Imprint's files have those: a fused module becomes several.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from core.errors import LoraInvalid, StoreUnavailable
from training.backends.ai_toolkit.options import toolkit_of
from training.families.record import Naming
from training.families.registry import FAMILIES
from training.lora import file as lora_file
from training.lora import metadata as lora_metadata
from training.lora.file import DEFAULT_MAX_BYTES, LoraReport
from training.lora.safetensor import Array, Malformed, Tensor, tensor, unpack
from training.ports import Example
from training.spec import TrainSpec


def convert_lora(
    source: Path, out: Path, spec: TrainSpec, examples: Sequence[Example], *, dataset_sha256: str, base_model: str = ""
) -> LoraReport:
    """Convert ai-toolkit's file `source` and write it to `out`, atomically, after `lora_file.check_lora_file`.

    base_model: the hub id of the base model, for the metadata. Raises LoraInvalid if the file does not match the spec,
    StoreUnavailable if `out` cannot be written.
    """
    weights = _weights(_read_tensors(source), spec)
    metadata = _metadata(spec, examples, dataset_sha256, base_model)
    data = lora_file.serialize_lora(spec.family, weights, spec.file_alpha, metadata)
    report = lora_file.check_trained(data, spec, _count(spec, base_model))
    try:
        lora_file.write_file(out, data)
    except OSError as error:
        raise StoreUnavailable(f"the LoRA file cannot be written: {error.strerror}") from error
    return report


def _count(spec: TrainSpec, base_model: str) -> int | None:
    """How many modules the file must have; None where only the server knows: another base model may be smaller."""
    family = FAMILIES[spec.family]
    if base_model not in {base.location for base in family.base_models}:
        return None
    return toolkit_of(spec).modules if family.sizes is None else family.sizes.modules[spec.adapter.targets]


def _read_tensors(source: Path) -> dict[str, Tensor]:
    try:
        size = source.stat().st_size
        data = source.read_bytes() if size <= DEFAULT_MAX_BYTES else b""
    except OSError as error:
        raise LoraInvalid(f"the trained file cannot be read: {error.strerror}") from error
    if size > DEFAULT_MAX_BYTES:
        raise LoraInvalid(f"the trained file has {size} bytes; at most {DEFAULT_MAX_BYTES} are accepted")
    try:
        return unpack(data)[0]
    except Malformed as error:
        raise LoraInvalid(f"the trained file is damaged: {error}") from error


def _weights(tensors: Mapping[str, Tensor], spec: TrainSpec) -> dict[str, tuple[Array, Array]]:
    """Down and up of every module, by its name without the prefix. Raises LoraInvalid for other contents."""
    naming, prefix = lora_file.naming_of(spec.family), toolkit_of(spec).prefix
    weights: dict[str, tuple[Array, Array]] = {}
    used: set[str] = set()
    for name in tensors:
        if not name.endswith(naming.down):
            continue
        stem = name.removesuffix(naming.down)
        modules = _modules(stem.removeprefix(prefix), spec.family)
        if not stem.startswith(prefix) or not all(naming.modules.fullmatch(module) for module in modules):
            raise LoraInvalid(f"the trained file has a tensor {name[:120]!r}, which no {spec.family} LoRA has")
        up = tensors.get(stem + naming.up)
        if up is None:
            raise LoraInvalid(f"the trained file lacks {stem}{naming.up}")
        _check_alpha(tensors.get(f"{stem}.alpha"), stem, naming, spec)
        used |= {name, stem + naming.up, f"{stem}.alpha"}
        shares = FAMILIES[spec.family].lora.rows(modules)
        if not up.shape or up.shape[0] % sum(shares):
            raise LoraInvalid(f"the trained file's {stem} has shape {up.shape}, which is not {sum(shares)} equal parts")
        down = tensors[name].floats()
        ends = np.cumsum(shares)[:-1] * (up.shape[0] // sum(shares))
        for module, part in zip(modules, np.split(up.floats(), ends), strict=True):
            weights[module] = (down, part)
    if strange := sorted(set(tensors) - used):
        raise LoraInvalid(f"the trained file has a tensor {strange[0][:120]!r}, which no {spec.family} LoRA has")
    return weights


def _modules(module: str, family: str) -> tuple[str, ...]:
    """The modules in Imprint's files of one in the model's own code, which may fuse query, key and value."""
    for pattern, names in FAMILIES[family].lora.original:
        if (found := re.fullmatch(pattern, module)) is not None:
            return tuple(found.expand(name) for name in names)
    return (module,)


def _check_alpha(alpha: Tensor | None, stem: str, naming: Naming, spec: TrainSpec) -> None:
    """Check that a module was trained with the alpha of the spec, before Imprint writes its own."""
    if alpha is None:
        if naming.underscores:  # loaders would assume alpha = rank; ai-toolkit always writes it
            raise LoraInvalid(f"the trained file lacks {stem}.alpha")
        alpha_in_file, alpha_in_spec = float(spec.rank), spec.file_alpha
    elif alpha.elements.size != 1:
        raise LoraInvalid(f"the trained file's {stem}.alpha is not a single number")
    else:
        # Compare in the precision of the file, which may round the spec's alpha.
        alpha_in_file = float(alpha.floats().reshape(-1)[0])
        alpha_in_spec = float(tensor(np.asarray(spec.file_alpha), alpha.kind).floats())
    if alpha_in_file != alpha_in_spec:
        raise LoraInvalid(
            f"the trained file's {stem} was trained with alpha {alpha_in_file:g} at rank {spec.rank}, "
            f"not {spec.file_alpha:g}"
        )


def _metadata(spec: TrainSpec, examples: Sequence[Example], dataset_sha256: str, base_model: str) -> dict[str, str]:
    steps = spec.steps(len(examples))
    metadata = lora_metadata.build_metadata(
        spec,
        examples,
        steps=steps,
        dataset_sha256=dataset_sha256,
        base_sha256="",
        prediction=toolkit_of(spec).prediction,
    )
    # Only Imprint's own loop knows the hash of the base model, and initialises the LoRA from the job's seed.
    del metadata["imprint_base_sha256"], metadata["imprint_start"]
    metadata |= {"imprint_backend": "ai-toolkit", "modelspec.implementation": "https://github.com/ostris/ai-toolkit"}
    if base_model:
        metadata["ss_sd_model_name"] = base_model
    return metadata
