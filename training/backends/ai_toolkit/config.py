"""Turn a recipe into a job for ai-toolkit: pure functions.

Differences from Imprint's own training loop:
- training has no seed: `spec.seed` only seeds the sample pictures, so two trainings differ;
- adapters of transformers have no alpha (scale 1), so alpha must equal rank;
- AdamW's epsilon is 1e-6 instead of 1e-8; flow matching draws times uniformly and weights the loss ("weighted") instead
  of shifting them; the base model is quantised to 8 bits where the family's record says so;
- sd15 and sdxl base models are assumed to predict noise: v-prediction models are not detected;
- a masked loss and mirrored pictures are ai-toolkit's own: it blurs the edges of masks a little.
"""

import re
from collections.abc import Mapping
from math import ceil
from typing import Any

from core.errors import SpecInvalid
from training.backends.ai_toolkit import cards, options
from training.backends.ai_toolkit.answers import ServerFolders
from training.backends.ai_toolkit.options import toolkit_of
from training.hub import is_hub_file, is_hub_id
from training.spec import TrainSpec, base_model_location

PROMPTS = ("a photo of {}", "{}, portrait, soft light", "{} in the snow, wide shot")


def find_base_model(spec: TrainSpec, base_models: Mapping[str, str]) -> str:
    """The hub id of a spec's base model, for `RemoteTraining.base_model`.

    base_models: IMPRINT_BASE_MODELS, name to folder or hub id. Raises SpecInvalid for a folder: a remote server cannot
    read it.
    """
    found = base_model_location(spec.base_model, base_models)
    check_base_model(found)
    return found


def check_base_model(base_model: str) -> None:
    """Raises SpecInvalid unless `base_model` is a hub id."""
    if not is_hub_id(base_model):
        raise SpecInvalid.of(
            {"base_model": "is not a hub id (owner/name): a remote server downloads base models from the hub"}
        )


def escape_placeholders(text: str) -> str:
    """`text` without what ai-toolkit replaces: `${X}` (an environment variable), `[name]` and `[trigger]`."""
    return text.replace("${", "$(").replace("[name]", "(name)").replace("[trigger]", "(trigger)")


def escape_prompt(text: str) -> str:
    """`escape_placeholders`, and also without `--w 4096` and other flags that ai-toolkit reads from prompts."""
    return re.sub(r"-(?=-)", "- ", escape_placeholders(text))


def caption_file(caption: str) -> bytes:
    """The `.txt` file of a picture. ai-toolkit splits captions at commas and joins them with ", "."""
    return re.sub(r",\s+", ",", escape_placeholders(caption)).encode()


def job_config(
    spec: TrainSpec,
    name: str,
    folders: ServerFolders,
    *,
    pictures: int,
    base_model: str,
    dataset: str | None = None,
    training_adapter: str | None = None,
    card_gib: float | None = None,
) -> dict[str, Any]:
    """The `job_config` of POST /api/jobs for a training with `pictures` pictures.

    name: of the job, and of the dataset unless `dataset` is given. training_adapter: owner/name/file on the hub, for a
    few-step model; None: ai-toolkit's default. card_gib: the memory of the server's GPU, which decides about
    quantisation; None: ai-toolkit's default. Raises SpecInvalid if ai-toolkit cannot train the recipe.
    """
    check_base_model(base_model)
    if wrong := options.unsupported_options(spec):
        raise SpecInvalid.of(wrong)
    if training_adapter is not None and not is_hub_file(training_adapter):
        raise SpecInvalid.of({"training_adapter": "is not a file on the hub (owner/name/file.safetensors)"})
    steps = spec.steps(pictures)
    every = max(1, ceil(steps / 4))
    process = {
        "type": "diffusion_trainer",
        "training_folder": folders.training,
        "device": "cuda",
        "trigger_word": None,  # the captions have it already
        "performance_log_every": 10,
        "network": _network(spec),
        "save": {
            "dtype": toolkit_of(spec).precision,
            "save_every": every,
            "max_step_saves_to_keep": 1,
            "save_format": "diffusers",
            "push_to_hub": False,
        },
        "datasets": [_dataset(spec, f"{folders.datasets.rstrip('/')}/{dataset or name}")],
        "train": _train(spec, steps),
        "logging": {"log_every": 1, "use_ui_logger": True},
        "model": _model(spec, base_model, training_adapter, card_gib),
        "sample": _sample(spec, base_model, every),
    }
    return {
        "job": "extension",
        "config": {"name": name, "process": [process]},
        "meta": {"name": name, "version": "1.0"},
    }


def _network(spec: TrainSpec) -> dict[str, Any]:
    network: dict[str, Any] = {"type": "lora", "linear": spec.rank, "linear_alpha": spec.file_alpha}
    if (names := options.layer_names(spec)) is not None:
        # The layers that Imprint trains; the default is every linear and 1x1 convolution of the UNet.
        network["network_kwargs"] = {"only_if_contains": names}
    if skipped := toolkit_of(spec).skipped:
        network["network_kwargs"] = {**network.get("network_kwargs", {}), "ignore_if_contains": list(skipped)}
    return network


def _dataset(spec: TrainSpec, folder: str) -> dict[str, Any]:
    return {
        "folder_path": folder,
        "caption_ext": "txt",
        "default_caption": escape_placeholders(spec.trigger_word),
        "caption_dropout_rate": spec.data.caption_dropout,
        "cache_latents_to_disk": True,
        "is_reg": False,
        "network_weight": 1,
        "resolution": list(spec.data.resolutions) or [spec.resolution],
        "num_repeats": 1,
        "num_frames": 1,
        **({"flip_x": True} if spec.data.flip else {}),
        **({"alpha_mask": True} if spec.objective.masked else {}),  # the masks are the pictures' alpha channels
    }


def _train(spec: TrainSpec, steps: int) -> dict[str, Any]:
    train: dict[str, Any] = {
        "batch_size": spec.batch_size,
        "steps": steps,
        "gradient_accumulation": 1,
        "train_unet": True,
        "train_text_encoder": False,
        "gradient_checkpointing": True,
        **options.train_section(spec),
        "dtype": "bf16",
        "loss_type": "mse",
        "skip_first_sample": True,
        "disable_sampling": False,
    }
    return train | dict(toolkit_of(spec).train)


def _model(
    spec: TrainSpec, base_model: str, training_adapter: str | None, card_gib: float | None
) -> dict[str, Any]:  # fmt: skip
    known = toolkit_of(spec)
    variant = known.variant(base_model)
    changes = dict(variant.model) if variant is not None else {}
    if training_adapter is not None and "assistant_lora_path" in changes:
        changes["assistant_lora_path"] = training_adapter
    quantised = cards.quantisation(spec.family, base_model, card_gib)
    return {"name_or_path": base_model, "arch": known.arch, **known.model, **quantised, **changes}


def _sample(spec: TrainSpec, base_model: str, every: int) -> dict[str, Any]:
    """Previews after each quarter of the steps: of the recipe's prompts, or of three default ones."""
    subject = escape_prompt(f"{spec.trigger_word} {spec.class_word}".strip())
    prompts = [escape_prompt(one) for one in spec.validation.previews] or [one.format(subject) for one in PROMPTS]
    known = toolkit_of(spec)
    variant = known.variant(base_model)
    return {
        "sample_every": every,
        "samples": [{"prompt": prompt} for prompt in prompts],
        "neg": "",
        "seed": spec.seed % 2**32,
        "walk_seed": True,
        **known.sample,
        "width": spec.resolution,
        "height": spec.resolution,
        **(variant.sample if variant is not None else {}),
    }
