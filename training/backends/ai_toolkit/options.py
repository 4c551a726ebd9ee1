"""The optional groups of a recipe in ai-toolkit's words, and those that it has no word for."""

from typing import Any

from training.options import MIN_SNR_GAMMA
from training.spec import TrainSpec

_ATTENTION = ["attn1.to_", "attn2.to_"]
_REST = ["ff.net.", "proj_in", "proj_out"]  # of transformers; residual blocks have no such names
# Of each group, what is carried over; anything else that differs from its default is refused.
_KNOWN = {
    "adapter": {"targets", "rslora"},
    "optimization": {"schedule", "warmup_steps", "weight_decay", "max_grad_norm", "ema_decay"},
    "objective": {"weighting", "noise_offset"},
    "data": {"caption_dropout"},
    "validation": {"previews"},
}


_FAMILIES = ("sd15", "sdxl", "z-image")  # whose jobs config.py can write and whose files convert.py can read


def unsupported_options(spec: TrainSpec) -> dict[str, str]:
    """What of a spec ai-toolkit cannot do, by field; {} for a spec that it can train."""
    found = {
        f"{group}.{name}": "ai-toolkit cannot do this: leave it out, or train with backend local"
        for group, known in _KNOWN.items()
        for name in getattr(spec, group).to_dict()
        if name not in known
    }
    if spec.family not in _FAMILIES:
        found["backend"] = f"{spec.family} is not trained by ai-toolkit from here: train with backend local"
    if spec.family == "z-image" and spec.file_alpha != spec.rank:
        found["alpha"] = f"ai-toolkit trains Z-Image with alpha = rank only: {spec.rank}"
    if spec.optimizer == "prodigy" and spec.learning_rate < 0.1:
        found["learning_rate"] = "ai-toolkit takes a rate below 0.1 for 1 with prodigy: ask for at least 0.1"
    if spec.optimization.warmup_steps and spec.optimization.schedule != "constant":
        found["optimization.warmup_steps"] = "ai-toolkit warms up with a constant schedule only"
    # Its other weightings are of another kind, and flow matching knows none of these.
    if spec.objective.weighting == "debiased" or (spec.objective.weighting != "none" and spec.family == "z-image"):
        found["objective.weighting"] = f"ai-toolkit does not know {spec.objective.weighting} for {spec.family}"
    return found


def layer_names(spec: TrainSpec) -> list[str] | None:
    """Parts of names that a layer of the UNet must have one of; None for Z-Image, whose layers all get a LoRA."""
    if spec.family == "z-image":
        return None
    return [*_ATTENTION, *(_REST if spec.adapter.targets == "all" else [])]


def train_section(spec: TrainSpec) -> dict[str, Any]:
    """Fields of ai-toolkit's `train`."""
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
    if asked.schedule == "linear":  # its own is torch's LinearLR, which by itself rises
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
