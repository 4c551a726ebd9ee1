"""The family of a base model on this machine, by the header of its file or the index of its folder. Without torch."""

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
# A name that every part of that kind has.
MARKS = {
    "unet": "input_blocks.0.0.weight",
    "vae": "encoder.conv_in.weight",
    "text_encoder": "encoder.layers.0.layer_norm1.weight",
    "text_encoder_2": "transformer.resblocks.0.ln_1.weight",
    "transformer": "cap_embedder.0.weight",
}


def has_part(kinds: Mapping[str, str], part: str, prefix: str) -> bool:
    """Whether a single file with these tensors has that part under that prefix."""
    return prefix + MARKS[part] in kinds or (part == "text_encoder" and prefix + "embed_tokens.weight" in kinds)


def family_of_names(path: Path, kinds: Mapping[str, str]) -> Family:
    """The family of a single file's tensors.

    Raises BaseModelUnavailable for none of ours, saying what the file is if that is known.
    """
    if any(has_part(kinds, "transformer", form) for form in PREFIXES["z-image"]["transformer"]):
        return "z-image"
    if any(name.startswith("cond_stage_model.model.") for name in kinds):
        raise BaseModelUnavailable(f"the base model {path} is a Stable Diffusion 2: no family of ours")
    if "model.diffusion_model.input_blocks.0.0.weight" in kinds:
        is_xl = any(name.startswith(("conditioner.", "model.diffusion_model.label_emb.")) for name in kinds)
        return "sdxl" if is_xl else "sd15"
    if any(name.endswith((".lora_down.weight", ".lora_A.weight")) for name in kinds):
        raise BaseModelUnavailable(f"the base model {path} is a LoRA: a base model is needed to train one on")
    raise BaseModelUnavailable(
        f"the base model {path} has no names of a checkpoint of {', '.join(PREFIXES)} (its first is "
        f"{min(kinds, default='none at all')[:120]!r}): is it a part of a model only, such as a VAE?"
    )


def family_of_base(location: str) -> Family | None:
    """The family of a base model given as a file or folder; None for a hub id, and for what cannot be told.

    What is wrong with a file or folder is said when it is loaded.
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
