"""The loss of a step: the family's own, and where jobs keep a prior, how far the LoRA moves the class from the base."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from training.engine.adapters import Ports
from training.families.diffusion import per_sample_error
from training.families.family import Base, Condition, Draw, Family


def losses(
    family: Family, base: Base, ports: Ports, made: Draw, conditions: Sequence[Condition], classes: Sequence[Condition]
) -> Tensor:
    """The loss of each sample, [B] float32; `classes` is empty where no job keeps a prior."""
    said = family.losses(base, made, conditions)
    return said + made.priors * stray(family, base, ports, made, classes) if classes else said


def stray(family: Family, base: Base, ports: Ports, made: Draw, classes: Sequence[Condition]) -> Tensor:
    """Mean squared difference of what model and frozen base say of the class, [B] float32.

    Prior preservation (https://arxiv.org/abs/2208.12242, section 3.2) without pictures of the class: told the caption
    without the trigger word, over the same noisy latents, the LoRA is to say what the base says.
    """
    noisy = family.mix(base, made)
    with torch.no_grad(), bare(ports):
        wanted = family.predict(base, noisy, made.times, classes)
    return per_sample_error(family.predict(base, noisy, made.times, classes), wanted)


@contextmanager
def bare(ports: Ports) -> Iterator[None]:
    """Inside, the denoiser is the frozen base's own."""
    worn, ports.pairs = ports.pairs, None
    try:
        yield
    finally:
        ports.pairs = worn
