"""The loss of a step: how far the prediction is from the target and, where jobs keep a prior, from the base's own.

Prior preservation (https://arxiv.org/abs/2208.12242, section 3.2) without pictures of the class: with the caption
without the trigger word, over the same noisy latents, the LoRA is to predict what the frozen base predicts. That counts
beside a picture (`priors`, which takes two more passes), or at some samples in its place (`recalled`, one more).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.engine.lora_layers import LoRALayers
from training.families.family import Base, Condition, Draw, Family


def losses(
    family: Family, base: Base, layers: LoRALayers, made: Draw, conditions: Sequence[Condition],
    classes: Sequence[Condition] = (), *, recalls: bool = False,
) -> Tensor:  # fmt: skip
    """The loss of each sample, [B] float32.

    `classes` is empty where no job keeps a prior beside pictures; `recalls` says whether any sample is recalled, so
    that the device need not be asked.
    """
    known = without_lora(family, base, layers, made, conditions) if recalls else None
    found = errors(family, base, made, conditions, known)
    return found + made.priors * prior_loss(family, base, layers, made, classes) if classes else found


def errors(
    family: Family, base: Base, made: Draw, conditions: Sequence[Condition], known: Tensor | None = None
) -> Tensor:
    """The weighted mean squared error of each sample, [B] float32; of recalled ones against what the base predicts,
    `known` [B, C, h, w].
    """
    target = family.target(base, made)
    if known is not None:
        target = torch.where(made.recalled.view(-1, 1, 1, 1), known.to(target.dtype), target)
    prediction = family.predict(base, family.mix(base, made), made.times, conditions)
    return per_sample_error(prediction, target, made.weights)


def per_sample_error(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of every sample, [B] float32; weights [B, 1, h, w] say how much each place counts."""
    squares = (prediction.float() - target.float()).pow(2)
    return (squares if weights is None else squares * weights).flatten(1).mean(1)


def prior_loss(family: Family, base: Base, layers: LoRALayers, made: Draw, classes: Sequence[Condition]) -> Tensor:
    """Mean squared difference of the predictions of model and frozen base for the class, [B] float32."""
    target = without_lora(family, base, layers, made, classes)
    return per_sample_error(family.predict(base, family.mix(base, made), made.times, classes), target)


def without_lora(family: Family, base: Base, layers: LoRALayers, made: Draw, conditions: Sequence[Condition]) -> Tensor:
    """What the frozen base predicts, [B, C, h, w]."""
    with torch.no_grad(), layers.applying(None):
        return family.predict(base, family.mix(base, made), made.times, conditions)
