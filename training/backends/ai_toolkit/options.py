"""Translate the optional groups of a recipe for ai-toolkit, and find options that it does not support."""

from typing import Any

from training.options import MIN_SNR_GAMMA
from training.spec import TrainSpec

_ATTENTION = ["attn1.to_", "attn2.to_"]
_REST = ["ff.net.", "proj_in", "proj_out"]  # of transformer blocks; residual blocks have no such names
# The supported options of each group. Any other option that differs from its default is an error.
_KNOWN = {
    "adapter": {"targets", "rslora"},
    "optimization": {"schedule", "warmup_steps", "weight_decay", "max_grad_norm", "ema_decay"},
    "objective": {"weighting", "noise_offset"},
    "data": {"caption_dropout"},
    "validation": {"previews"},
}


_FAMILIES = ("sd15", "sdxl", "z-image")  # supported by config.py and convert.py


def unsupported_options(spec: TrainSpec) -> dict[str, str]:
    """The options of a spec that ai-toolkit does not support, by field; {} if it can train the spec."""
    found = {
        f"{group}.{name}": "ai-toolkit does not support this option: remove it, or use the local backend"
        for group, known in _KNOWN.items()
        for name in getattr(spec, group).to_dict()
        if name not in known
    }
    if spec.keep_checkpoints:
        found["keep_checkpoints"] = "ai-toolkit keeps no checkpoints: leave it out, or use the local backend"
    if spec.family not in _FAMILIES:
        found["backend"] = f"{spec.family} cannot be trained on ai-toolkit: use the local backend"
    if spec.family == "z-image" and spec.file_alpha != spec.rank:
        found["alpha"] = f"ai-toolkit trains Z-Image only with alpha = rank: set alpha to {spec.rank}"
    if spec.optimizer == "prodigy" and spec.learning_rate < 0.1:
        found["learning_rate"] = "with prodigy, ai-toolkit replaces a rate below 0.1 by 1: set at least 0.1"
    if spec.optimization.warmup_steps and spec.optimization.schedule != "constant":
        found["optimization.warmup_steps"] = "ai-toolkit supports warm-up only with a constant schedule"
    # Its other weightings differ from Imprint's, and none of these applies to flow matching.
    if spec.objective.weighting == "debiased" or (spec.objective.weighting != "none" and spec.family == "z-image"):
        found["objective.weighting"] = f"ai-toolkit does not support {spec.objective.weighting} for {spec.family}"
    return found


def layer_names(spec: TrainSpec) -> list[str] | None:
    """A UNet layer gets a LoRA if its name contains one of these; None for Z-Image: all layers get one."""
    if spec.family == "z-image":
        return None
    return [*_ATTENTION, *(_REST if spec.adapter.targets == "all" else [])]


def train_section(spec: TrainSpec) -> dict[str, Any]:
    """Fields of the `train` section."""
    asked = spec.optimization
    params: dict[str, Any] = {"weight_decay": asked.weight_decay}
    if spec.optimizer == "prodigy":
        params |= {"use_bias_correction": True, "safeguard_warmup": True}
    made: dict[str, Any] = {
        "optimizer": spec.optimizer,
        "optimizer_params": params,
        "lr": spec.learning_rate,
        "lr_scheduler": asked.schedule,
        "max_grad_norm": asked.max_grad_norm,
        "ema_config": {"use_ema": asked.ema_decay > 0, "ema_decay": asked.ema_decay or 0.99},
    }
    if asked.schedule == "linear":  # torch's LinearLR rises by default
        made["lr_scheduler_params"] = {"start_factor": 1.0, "end_factor": 0.0}
    if asked.schedule == "constant" and asked.warmup_steps:
        made |= {
            "lr_scheduler": "constant_with_warmup",
            "lr_scheduler_params": {"num_warmup_steps": asked.warmup_steps},
        }
    if spec.objective.noise_offset:
        made["noise_offset"] = spec.objective.noise_offset
    if spec.objective.weighting == "min_snr":
        made["min_snr_gamma"] = MIN_SNR_GAMMA
    return made
