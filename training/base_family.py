"""Find the family of a base model from the header of its file or the index of its folder. Does not import torch."""

import json
from collections.abc import Mapping
from pathlib import Path

from core.errors import BaseModelUnavailable
from training.families.checkpoint_names import PREFIXES
from training.lora import safetensor
from training.spec import Family

_PIPELINES: dict[str, Family] = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "ZImagePipeline": "z-image",
}
# A name by which each kind of part is recognised: all parts of the kind have it.
MARKS = {
    "unet": "input_blocks.0.0.weight",
    "vae": "encoder.conv_in.weight",
    "text_encoder": "encoder.layers.0.layer_norm1.weight",
    "text_encoder_2": "transformer.resblocks.0.ln_1.weight",
    "transformer": "cap_embedder.0.weight",
}


def has_part(kinds: Mapping[str, str], part: str, prefix: str) -> bool:
    """Whether a single file with these tensors has the part under the prefix."""
    return prefix + MARKS[part] in kinds or (part == "text_encoder" and prefix + "embed_tokens.weight" in kinds)


def family_of_names(path: Path, kinds: Mapping[str, str]) -> Family:
    """The family of a single file, from the dtypes of its tensors by name.

    Raises BaseModelUnavailable if it is of no supported family, and says what the file is, if known.
    """
    if any(has_part(kinds, "transformer", form) for form in PREFIXES["z-image"]["transformer"]):
        return "z-image"
    if any(name.startswith("cond_stage_model.model.") for name in kinds):
        raise BaseModelUnavailable(f"the base model {path} is a Stable Diffusion 2, which is not supported")
    if "model.diffusion_model.input_blocks.0.0.weight" in kinds:
        is_xl = any(name.startswith(("conditioner.", "model.diffusion_model.label_emb.")) for name in kinds)
        return "sdxl" if is_xl else "sd15"
    if any(name.endswith((".lora_down.weight", ".lora_A.weight")) for name in kinds):
        raise BaseModelUnavailable(f"the base model {path} is a LoRA: a LoRA is trained on a base model")
    raise BaseModelUnavailable(
        f"the base model {path} has no names of a checkpoint of {', '.join(PREFIXES)} (its first is "
        f"{min(kinds, default='none at all')[:120]!r}): it may be only a part of a model, such as a VAE"
    )


def family_of_base(location: str) -> Family | None:
    """The family of a base model given as a file or folder; None for a hub id, or if it is unknown.

    Never raises: faults of a file or folder are reported when it is loaded.
    """
    path = Path(location).expanduser()
    try:
        if path.is_dir():
            index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
            return _PIPELINES.get(str(index.get("_class_name")))
        if path.suffix == ".safetensors" and path.is_file():
            return family_of_names(path, safetensor.check_layout(path)[0])
    except (OSError, ValueError, AttributeError, RecursionError, BaseModelUnavailable):
        return None
    return None
