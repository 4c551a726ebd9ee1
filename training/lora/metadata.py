"""The metadata of LoRA files: fields for user interfaces (modelspec, ss_*), and the recipe, so it can be repeated.

modelspec: https://github.com/Stability-AI/ModelSpec; ss_*: kohya sd-scripts. It contains no timestamps, so the same
training gives the same bytes.
"""

import json
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from pathlib import Path

from training.families.registry import FAMILIES
from training.lora.safetensor import Malformed, read_header
from training.options import MIN_SNR_GAMMA, Quantisation
from training.ports import Example
from training.spec import TrainSpec

# The initialisation of the LoRA: peft's default, but drawn from the job's seed, so that no library version changes it.
START = "kaiming-uniform"

# In kohya's format: a class with its arguments, except the rate.
_OPTIMIZER = {
    "adamw": "torch.optim.adamw.AdamW(weight_decay={})",
    "adamw8bit": "AdamW8bit(weight_decay={})",
    "prodigy": "Prodigy(weight_decay={})",
}
_PREDICTION = {"epsilon": "epsilon", "v_prediction": "v", "flow": "flow"}


def own_version() -> str:
    """The installed version of Imprint."""
    try:
        return version("imprint")
    except PackageNotFoundError:  # not installed
        return "0"


def recipe_json(spec: TrainSpec) -> str:
    """The spec as canonical JSON. Only the last part of a base model's folder is included, to hide local paths."""
    recipe = spec.to_dict()
    if Path(spec.base_model).is_absolute():
        recipe["base_model"] = Path(spec.base_model).name
    return json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def tag_frequency(trigger_word: str, captions: Sequence[str]) -> str:
    """The count of each comma-separated tag in the captions, in kohya's format: {folder: {tag: count}}."""
    tags = Counter(part.strip() for caption in captions for part in caption.split(",") if part.strip())
    return json.dumps({trigger_word: dict(sorted(tags.items()))}, ensure_ascii=False)


def bucket_info(examples: Sequence[Example]) -> dict[str, dict[str, object]]:
    """The number of pictures of each size, in kohya's format: {number: {resolution, count}}, sorted by size."""
    sizes = Counter((example.width, example.height) for example in examples)
    return {
        str(number): {"resolution": list(size), "count": count}
        for number, (size, count) in enumerate(sorted(sizes.items()))
    }


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def build_metadata(
    spec: TrainSpec,
    examples: Sequence[Example],
    *,
    steps: int,
    dataset_sha256: str,
    base_sha256: str,
    prediction: str,
    validation: tuple[int, float] | None = None,
    quantisation: Quantisation = "none",
) -> dict[str, str]:
    """The metadata of a finished LoRA, all texts. A pure function of its arguments and of our version.

    `validation` is (step, loss) of the weights in the file, where pictures were held out; `quantisation`, of the
    base that it was trained on.
    """
    validated = {}
    if validation is not None:
        validated = {"imprint_step": str(validation[0]), "imprint_validation_loss": repr(validation[1])}
    return {
        **validated,
        **({"imprint_base_quantisation": quantisation} if quantisation != "none" else {}),
        **_kohya(spec, examples, steps),
        **_network_args(spec),
        **_modelspec(spec, prediction),
        "imprint_version": own_version(),
        "imprint_family": spec.family,
        "imprint_trigger_word": spec.trigger_word,
        "imprint_class_word": spec.class_word,
        "imprint_recipe": recipe_json(spec),
        "imprint_start": START,
        "imprint_dataset_sha256": dataset_sha256,
        "imprint_base_sha256": base_sha256,
        "format": "pt",
    }


def _network_args(spec: TrainSpec) -> dict[str, str]:
    """The arguments of the network: kohya's `conv_dim` and `conv_alpha`, as its trainer writes them, and our own."""
    given: dict[str, object] = {
        name: value for name, value in spec.adapter.to_dict().items() if name not in ("conv_rank", "conv_alpha")
    }
    if spec.adapter.targets == "convolutions":
        given |= {"conv_dim": str(spec.ranks.of(spatial=True)), "conv_alpha": f"{spec.file_alphas[1]:g}"}
    return {"ss_network_args": _json(given)} if given else {}


def _kohya(spec: TrainSpec, examples: Sequence[Example], steps: int) -> dict[str, str]:
    """The ss_ fields, as kohya's trainer writes them and UIs show them."""
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(spec.rank),
        "ss_network_alpha": repr(spec.file_alpha),
        "ss_base_model_version": FAMILIES[spec.family].lora.version,
        "ss_sd_model_name": Path(spec.base_model).name if Path(spec.base_model).is_absolute() else spec.base_model,
        "ss_v2": "False",
        "ss_learning_rate": repr(spec.learning_rate),
        "ss_unet_lr": repr(spec.learning_rate),
        "ss_text_encoder_lr": repr(spec.text_encoder_rate) if spec.adapter.text_encoder else "None",
        "ss_optimizer": _OPTIMIZER[spec.optimizer].format(spec.optimization.weight_decay),
        "ss_lr_scheduler": spec.optimization.schedule,
        "ss_lr_warmup_steps": str(spec.optimization.warmup_steps),
        "ss_max_grad_norm": repr(spec.optimization.max_grad_norm),
        "ss_noise_offset": repr(spec.objective.noise_offset) if spec.objective.noise_offset else "None",
        "ss_min_snr_gamma": repr(MIN_SNR_GAMMA) if spec.objective.weighting == "min_snr" else "None",
        "ss_debiased_estimation": str(spec.objective.weighting == "debiased"),
        "ss_prior_loss_weight": repr(spec.objective.prior_weight),
        "ss_masked_loss": str(spec.objective.masked),
        "ss_caption_dropout_rate": repr(spec.data.caption_dropout),
        "ss_batch_size_per_device": str(spec.batch_size),
        "ss_total_batch_size": str(spec.batch_size),
        "ss_gradient_accumulation_steps": "1",
        "ss_num_train_images": str(len(examples)),
        "ss_num_reg_images": "0",
        "ss_num_batches_per_epoch": str(ceil(len(examples) / spec.batch_size)),
        "ss_dataset_dirs": _json({spec.trigger_word: {"n_repeats": 1, "img_count": len(examples)}}),
        "ss_bucket_info": _json({"buckets": bucket_info(examples), "mean_img_ar_error": 0.0}),
        "ss_num_epochs": str(spec.epochs),
        "ss_steps": str(steps),
        "ss_max_train_steps": str(steps),
        "ss_seed": str(spec.seed),
        "ss_resolution": f"({spec.resolution}, {spec.resolution})",
        "ss_enable_bucket": str(spec.aspect_buckets),
        "ss_cache_latents": "True",
        "ss_output_name": spec.trigger_word,
        "ss_tag_frequency": tag_frequency(spec.trigger_word, [example.caption for example in examples]),
        "ss_trigger_word": spec.trigger_word,
        "ss_training_comment": f"trigger word: {spec.trigger_word}",
    }


def _modelspec(spec: TrainSpec, prediction: str) -> dict[str, str]:
    """The fields of Stability's ModelSpec, but for its date."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": FAMILIES[spec.family].lora.architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": spec.trigger_word,
        "modelspec.resolution": f"{spec.resolution}x{spec.resolution}",
        "modelspec.prediction_type": _PREDICTION[prediction],
        "modelspec.trigger_phrase": spec.trigger_word,
        "modelspec.usage_hint": f"say {spec.trigger_word!r} in the prompt",
    }


def validation_loss(data: bytes) -> float | None:
    """The loss on held-out pictures of the weights in a LoRA file of ours; None if they were not validated."""
    try:
        written = read_header(data)[0].get("__metadata__", {}).get("imprint_validation_loss")
    except Malformed:
        return None
    return None if written is None else float(written)
