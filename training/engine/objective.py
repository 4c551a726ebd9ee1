"""The loss of a step: the error of the prediction, and the prior loss of jobs with prior preservation.

Prior preservation (https://arxiv.org/abs/2208.12242, section 3.2) without pictures of the class: with a caption without
the trigger word, on the same noisy latents, the LoRA learns to predict what the frozen base predicts. This is added to
a picture's loss (`priors`, which takes two more passes), or replaces it for some samples (`recalled`, one more pass).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.engine.lora_layers import LoRALayers
from training.families.family import Base, Condition, Draw, FamilyCode


def losses(
    family: FamilyCode, base: Base, layers: LoRALayers, made: Draw, conditions: Sequence[Condition],
    classes: Sequence[Condition] = (), *, recalls: bool = False,
) -> Tensor:  # fmt: skip
    """The loss of each sample, [B] float32.

    classes: conditions of the class captions; empty without a prior loss. recalls: whether `made.recalled` has any
    sample, as reading it would wait for the device.
    """
    known = without_lora(family, base, layers, made, conditions) if recalls else None
    found = errors(family, base, made, conditions, known)
    return found + made.priors * prior_loss(family, base, layers, made, classes) if classes else found


def errors(
    family: FamilyCode, base: Base, made: Draw, conditions: Sequence[Condition], known: Tensor | None = None
) -> Tensor:
    """The weighted mean squared error of each sample, [B] float32.

    known: predictions of the frozen base, [B, C, h, w]: the targets of recalled samples.
    """
    target = family.target(base, made)
    if known is not None:
        target = torch.where(made.recalled.view(-1, 1, 1, 1), known.to(target.dtype), target)
    prediction = family.predict(base, family.mix(base, made), made.times, conditions)
    return per_sample_error(prediction, target, made.weights)


def per_sample_error(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean squared error of each sample, [B] float32. weights: [B, 1, h, w], of each place."""
    squares = (prediction.float() - target.float()).pow(2)
    return (squares if weights is None else squares * weights).flatten(1).mean(1)


def prior_loss(family: FamilyCode, base: Base, layers: LoRALayers, made: Draw, classes: Sequence[Condition]) -> Tensor:
    """The mean squared difference between the predictions with and without LoRA for the class captions, [B] float32."""
    target = without_lora(family, base, layers, made, classes)
    return per_sample_error(family.predict(base, family.mix(base, made), made.times, classes), target)


def without_lora(
    family: FamilyCode, base: Base, layers: LoRALayers, made: Draw, conditions: Sequence[Condition]
) -> Tensor:
    """The predictions of the frozen base, [B, C, h, w], without gradients."""
    with torch.no_grad(), layers.applying(None):
        return family.predict(base, family.mix(base, made), made.times, conditions)
