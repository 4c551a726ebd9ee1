"""Translate the optional groups of a recipe for ai-toolkit, and find options that it does not support."""

from typing import Any

from training.families.record import AiToolkit
from training.families.registry import FAMILIES
from training.options import MIN_SNR_GAMMA
from training.spec import TrainSpec

# The supported options of each group. Any other option that differs from its default is an error.
_KNOWN = {
    "adapter": {"targets", "rslora"},
    "optimization": {"schedule", "warmup_steps", "weight_decay", "max_grad_norm", "ema_decay"},
    "objective": {"weighting", "noise_offset", "masked"},
    "data": {"caption_dropout", "flip", "resolutions"},
    "validation": {"previews"},
}


def toolkit_of(spec: TrainSpec) -> AiToolkit:
    """How ai-toolkit trains the spec's family. `unsupported_options` has refused those that it does not train."""
    known = FAMILIES[spec.family].toolkit
    assert known is not None, spec.family  # noqa: S101
    return known


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
    family = FAMILIES[spec.family]
    if family.toolkit is None:
        return found | {"backend": f"{spec.family} cannot be trained on ai-toolkit: use the local backend"}
    if not family.toolkit.has_alpha and spec.file_alpha != spec.rank:
        found["alpha"] = f"ai-toolkit trains {family.title} only with alpha = rank: set alpha to {spec.rank}"
    layers = family.toolkit.layers
    if layers is not None and spec.adapter.targets not in layers:
        found["adapter.targets"] = f"ai-toolkit is asked for {' or '.join(layers)} only: use the local backend"
    if spec.optimizer == "prodigy" and spec.learning_rate < 0.1:
        found["learning_rate"] = "with prodigy, ai-toolkit replaces a rate below 0.1 by 1: set at least 0.1"
    if spec.optimization.warmup_steps and spec.optimization.schedule != "constant":
        found["optimization.warmup_steps"] = "ai-toolkit supports warm-up only with a constant schedule"
    if spec.objective.weighting not in family.toolkit.weightings:
        found["objective.weighting"] = f"ai-toolkit does not support {spec.objective.weighting} for {spec.family}"
    return found


def layer_names(spec: TrainSpec) -> list[str] | None:
    """A layer gets a LoRA if its name contains one of these; None: all layers that ai-toolkit trains get one."""
    layers = toolkit_of(spec).layers
    return None if layers is None else list(layers[spec.adapter.targets])


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
