"""The loss of a step: how far what is said is from what should be, and where jobs keep a prior, from the base.

Prior preservation (https://arxiv.org/abs/2208.12242, section 3.2) without pictures of the class: told the caption
without the trigger word, over the same noisy latents, the LoRA is to say what the frozen base says. That is asked
beside a picture (`priors`, which takes two more passes), or at some samples in its place (`recalled`, one more).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from training.engine.adapters import Ports
from training.families.family import Base, Condition, Draw, Family


def losses(
    family: Family, base: Base, ports: Ports, made: Draw, conditions: Sequence[Condition],
    classes: Sequence[Condition] = (), *, recalls: bool = False,
) -> Tensor:  # fmt: skip
    """The loss of each sample, [B] float32.

    `classes` is empty where no job keeps a prior beside pictures; `recalls` says whether any sample is recalled, which
    the device need not be asked then.
    """
    known = without_lora(family, base, ports, made, conditions) if recalls else None
    found = errors(family, base, made, conditions, known)
    return found + made.priors * stray(family, base, ports, made, classes) if classes else found


def errors(
    family: Family, base: Base, made: Draw, conditions: Sequence[Condition], known: Tensor | None = None
) -> Tensor:
    """The weighted mean squared error of each sample, [B] float32; of recalled ones against what the base is `known`
    to say, [B, C, h, w].
    """
    wanted = family.target(base, made)
    if known is not None:
        wanted = torch.where(made.recalled.view(-1, 1, 1, 1), known.to(wanted.dtype), wanted)
    return per_sample_error(family.predict(base, family.mix(base, made), made.times, conditions), wanted, made.weights)


def per_sample_error(said: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of every sample, [B] float32; weights [B, 1, h, w] say how much each place counts."""
    squares = (said.float() - wanted.float()).pow(2)
    return (squares if weights is None else squares * weights).flatten(1).mean(1)


def stray(family: Family, base: Base, ports: Ports, made: Draw, classes: Sequence[Condition]) -> Tensor:
    """Mean squared difference of what model and frozen base say of the class, [B] float32."""
    wanted = without_lora(family, base, ports, made, classes)
    return per_sample_error(family.predict(base, family.mix(base, made), made.times, classes), wanted)


def without_lora(family: Family, base: Base, ports: Ports, made: Draw, conditions: Sequence[Condition]) -> Tensor:
    """What the frozen base says, [B, C, h, w]."""
    with torch.no_grad(), bare(ports):
        return family.predict(base, family.mix(base, made), made.times, conditions)


@contextmanager
def bare(ports: Ports) -> Iterator[None]:
    """Inside, the denoiser is the frozen base's own."""
    worn, ports.pairs = ports.pairs, None
    try:
        yield
    finally:
        ports.pairs = worn
