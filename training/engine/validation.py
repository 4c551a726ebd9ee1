"""What is looked at beside the training, at a step boundary: held-out pictures, and pictures of prompts.

Nothing here touches what the training reckons with: it draws its own noise, keeps no gradient, and one job's look
changes nobody's numbers. Samples are met one at a time, so that a look needs no more memory than a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.engine.objective import errors
from training.engine.randomness import generator
from training.families.family import Base, Condition, Family

LEVELS = 8  # noise levels at which every held-out picture is met


@dataclass(frozen=True)
class ValidationSet:
    """Held-out pictures, one of each for every picture; masks are empty where the loss is not masked."""

    names: Sequence[str]  # their SHA-256: the noise is theirs, whoever trains and with whichever seed
    moments: Sequence[Tensor]
    conditions: Sequence[Condition]
    masks: Sequence[Tensor] = ()


@dataclass(frozen=True)
class PreviewPrompts:
    """Prompts to be drawn, each from its own noise, which is always the same."""

    conditions: Sequence[Condition]
    blank: Condition  # of the empty prompt, for guidance
    shape: tuple[int, ...]  # of the latents, [C, h, w]
    seed: int


def validation_loss(family: Family, base: Base, held_out: ValidationSet) -> float:
    """The mean loss over all pictures and `LEVELS` fixed times, unweighted but for masks.

    With the same pictures it may be compared between trainings, whatever their objective and seed. Waits for the
    device.
    """
    times = family.levels(base, 2 * LEVELS)[1::2]
    losses = []
    with torch.no_grad():
        for place, name in enumerate(held_out.names):
            for level in range(LEVELS):
                chance = generator(0, f"validation {name}", level)
                made = family.draw(base, held_out.moments[place].unsqueeze(0), chance)
                made = replace(made, times=times[level : level + 1])
                if held_out.masks:
                    made = replace(made, weights=held_out.masks[place].unsqueeze(0))
                losses.append(errors(family, base, made.to(base.device), [held_out.conditions[place]]))
        return float(torch.cat(losses).double().mean())


def draw_previews(family: Family, base: Base, prompts: PreviewPrompts) -> list[Tensor]:
    """The latents [C, h, w] of every prompt, on the CPU: drawn with what the denoiser wears now, with guidance."""
    steps, guidance = base.drawing
    times = family.levels(base, steps).to(base.device)
    drawn = []
    with torch.no_grad(), family.as_used(base):
        for place, told in enumerate(prompts.conditions):
            noise = torch.randn(1, *prompts.shape, generator=generator(prompts.seed, "preview", place))
            mixed = noise.to(base.device)
            for step in range(steps):
                now = times[step : step + 1]
                said = family.predict(base, mixed, now, [told]).float()
                if guidance != 1:
                    unsaid = family.predict(base, mixed, now, [prompts.blank]).float()
                    said = unsaid + guidance * (said - unsaid)
                then = times[step + 1] if step + 1 < steps else None
                mixed = family.denoise(base, mixed, said, times[step], then)
            drawn.append(mixed[0].cpu())
    return drawn


def is_over(looks: Sequence[tuple[int, float]], patience: int) -> bool:
    """Whether the last `patience` looks (step, loss) brought nothing better than what was before; never if it is 0."""
    if not patience or not looks:
        return False
    best = min(range(len(looks)), key=lambda place: looks[place][1])  # of equals the first
    return len(looks) - 1 - best >= patience


def is_best(looks: Sequence[tuple[int, float]]) -> bool:
    """Whether the last look is better than all before it."""
    return all(looks[-1][1] < loss for _, loss in looks[:-1])
