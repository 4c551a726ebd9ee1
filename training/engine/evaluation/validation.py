"""The two parts of an evaluation: validation, the loss on held-out pictures; and previews, drawn from prompts.

Neither changes the training: an evaluation draws its own noise and needs no gradient. Both are generators that yield
before each unit of work (one forward pass, or one step of drawing), so that the engine can train in between.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.engine.objective import errors
from training.engine.randomness import generator
from training.families.family import Base, Condition, Draw, FamilyCode

LEVELS = 8  # noise levels at which every held-out picture is validated


@dataclass(frozen=True)
class ValidationSet:
    """Held-out pictures: one name, moments, condition and mask each. No masks if the loss is not masked."""

    names: Sequence[str]  # SHA-256, which seeds the noise: the same in every training, whatever its seed
    moments: Sequence[Tensor]
    conditions: Sequence[Condition]
    masks: Sequence[Tensor] = ()


@dataclass(frozen=True)
class PreviewPrompts:
    """Prompts to draw, each from the same noise every time."""

    conditions: Sequence[Condition]
    blank: Condition  # of the empty prompt, for guidance
    shape: tuple[int, ...]  # of the latents, [C, h, w]
    seed: int


def validation_loss(
    family: FamilyCode, base: Base, held_out: ValidationSet, batch_size: int = 1
) -> Generator[None, None, float]:
    """The mean loss over all pictures and `LEVELS` fixed times, unweighted except for masks.

    With the same pictures it can be compared between trainings with any objective and seed. `batch_size` times of one
    picture go into one forward pass. Waits for the device at the end.
    """
    losses = []
    for place in range(len(held_out.names)):
        for first in range(0, LEVELS, batch_size):
            yield
            made = _noisy(family, base, held_out, place, range(first, min(first + batch_size, LEVELS)))
            conditions = [held_out.conditions[place]] * len(made.times)
            losses.append(errors(family, base, made.to(base.device), conditions))
    return float(torch.cat(losses).double().mean())


def _noisy(family: FamilyCode, base: Base, held_out: ValidationSet, place: int, levels: Sequence[int]) -> Draw:
    """One picture at some of the levels, each with its own noise."""
    name, moments = held_out.names[place], held_out.moments[place].unsqueeze(0)
    times = family.levels(base, 2 * LEVELS, (moments.shape[-2], moments.shape[-1]))[1::2]
    drawn = [family.draw(base, moments, generator(0, f"validation {name}", level)) for level in levels]
    made = Draw(*(torch.cat(parts) for parts in zip(*(one.parts for one in drawn), strict=True)))
    made = replace(made, times=times[levels[0] : levels[-1] + 1])
    if held_out.masks:
        made = replace(made, weights=held_out.masks[place].expand_as(made.weights))
    return made


def draw_previews(
    family: FamilyCode, base: Base, prompts: PreviewPrompts, batch_size: int = 1
) -> Generator[None, None, list[Tensor]]:
    """Draw every prompt with guidance and the LoRAs that are applied; returns latents [C, h, w] on the CPU.

    `batch_size` prompts go into one forward pass.
    """
    steps, guidance = base.drawing
    times = family.levels(base, steps, (prompts.shape[-2], prompts.shape[-1])).to(base.device)
    drawn: list[Tensor] = []
    for first in range(0, len(prompts.conditions), batch_size):
        conditions = prompts.conditions[first : first + batch_size]
        noise = [
            torch.randn(1, *prompts.shape, generator=generator(prompts.seed, "preview", first + place))
            for place in range(len(conditions))
        ]
        mixed = torch.cat(noise).to(base.device)
        for step in range(steps):
            yield
            now = times[step : step + 1].expand(len(conditions))
            with family.as_used(base):
                predicted = family.predict(base, mixed, now, conditions).float()
                if guidance != 1:
                    without = family.predict(base, mixed, now, [prompts.blank] * len(conditions)).float()
                    predicted = without + guidance * (predicted - without)
            then = times[step + 1] if step + 1 < steps else None
            mixed = family.denoise(base, mixed, predicted, times[step], then)
        drawn += mixed.cpu().unbind()
    return drawn


def is_over(losses: Sequence[tuple[int, float]], patience: int) -> bool:
    """Whether none of the last `patience` validations (step, loss) is better than the best before; False for 0."""
    if not patience or not losses:
        return False
    best = min(range(len(losses)), key=lambda place: losses[place][1])  # the first of equal ones
    return len(losses) - 1 - best >= patience


def is_best(losses: Sequence[tuple[int, float]]) -> bool:
    """Whether the last of the validations (step, loss) is better than all before it."""
    return all(losses[-1][1] < loss for _, loss in losses[:-1])
