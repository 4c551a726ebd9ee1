"""The learning rate of a step, a pure function of (recipe, step), so a checkpoint does not store it.

As in diffusers.optimization, except in the warm-up: there the first step has a positive rate, not zero.
"""

from math import cos, pi

from training.spec import TrainSpec


def rate_at(spec: TrainSpec, step: int, total: int) -> float:
    """The learning rate of `step`, from 0, of `total` steps."""
    asked = spec.optimization
    warm = asked.warmup_steps
    if step < warm:
        return spec.learning_rate * (step + 1) / warm
    if asked.schedule == "constant":
        return spec.learning_rate
    done = (step - warm) / max(1, total - warm)  # below 1: the last step has a positive rate
    share = 1 - done if asked.schedule == "linear" else (1 + cos(pi * done)) / 2
    return spec.learning_rate * max(0.0, share)
