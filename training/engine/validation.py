"""The two things that a job is evaluated by: the loss on held-out pictures, and previews, which are drawn from prompts.

Nothing here changes the training: an evaluation draws its own noise and keeps no gradient. Both are generators that
stop before each unit of work, which is one forward pass or a step of drawing, so that the engine can train in between.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.engine.objective import errors
from training.engine.randomness import generator
from training.families.family import Base, Condition, Draw, Family

LEVELS = 8  # noise levels at which every held-out picture is met


@dataclass(frozen=True)
class ValidationSet:
    """Held-out pictures, one of each for every picture; masks are empty where the loss is not masked."""

    names: Sequence[str]  # their SHA-256: the noise is theirs, in every training and with every seed
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


def validation_loss(
    family: Family, base: Base, held_out: ValidationSet, at_once: int = 1
) -> Generator[None, None, float]:
    """Measure the mean loss over all pictures and `LEVELS` fixed times, unweighted but for masks, `at_once` times in a
    batch.

    With the same pictures it may be compared between trainings, whatever their objective and seed. Waits for the
    device at the end.
    """
    losses = []
    for place in range(len(held_out.names)):
        for first in range(0, LEVELS, at_once):
            yield
            made = _noisy(family, base, held_out, place, range(first, min(first + at_once, LEVELS)))
            conditions = [held_out.conditions[place]] * len(made.times)
            losses.append(errors(family, base, made.to(base.device), conditions))
    return float(torch.cat(losses).double().mean())


def _noisy(family: Family, base: Base, held_out: ValidationSet, place: int, levels: Sequence[int]) -> Draw:
    """One picture at some of the levels, each with noise of its own."""
    times = family.levels(base, 2 * LEVELS)[1::2]
    name, moments = held_out.names[place], held_out.moments[place].unsqueeze(0)
    drawn = [family.draw(base, moments, generator(0, f"validation {name}", level)) for level in levels]
    made = Draw(*(torch.cat(parts) for parts in zip(*(one.parts for one in drawn), strict=True)))
    made = replace(made, times=times[levels[0] : levels[-1] + 1])
    if held_out.masks:
        made = replace(made, weights=held_out.masks[place].expand_as(made.weights))
    return made


def draw_previews(
    family: Family, base: Base, prompts: PreviewPrompts, at_once: int = 1
) -> Generator[None, None, list[Tensor]]:
    """Draw the latents [C, h, w] of every prompt, to the CPU, with the LoRAs that apply and with guidance; `at_once`
    prompts in a batch.
    """
    steps, guidance = base.drawing
    times = family.levels(base, steps).to(base.device)
    drawn: list[Tensor] = []
    for first in range(0, len(prompts.conditions), at_once):
        conditions = prompts.conditions[first : first + at_once]
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


def is_over(looks: Sequence[tuple[int, float]], patience: int) -> bool:
    """Whether the last `patience` looks (step, loss) brought nothing better than what was before; never if it is 0."""
    if not patience or not looks:
        return False
    best = min(range(len(looks)), key=lambda place: looks[place][1])  # of equals the first
    return len(looks) - 1 - best >= patience


def is_best(looks: Sequence[tuple[int, float]]) -> bool:
    """Whether the last look is better than all before it."""
    return all(looks[-1][1] < loss for _, loss in looks[:-1])
