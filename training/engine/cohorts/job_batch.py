"""The batch of one job in one step: pictures, captions, noise and loss weights. A pure function of (seed, step)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.engine.cohorts.slot_job import SlotJob
from training.engine.randomness import generator
from training.families.family import Base, Condition, Draw, FamilyCode


@dataclass(frozen=True)
class JobBatch:
    """One job's part of a step."""

    made: Draw
    conditions: list[Condition]
    classes: list[Condition]  # of the class captions; empty without a prior loss

    def empty(self) -> "JobBatch":
        """A batch of zeros of the same shape, for idle slots: their content must not depend on the jobs."""
        zeros = [[{name: torch.zeros_like(value) for name, value in one.items()} for one in group] for group in
                 (self.conditions, self.classes)]  # fmt: skip
        return JobBatch(Draw(*(torch.zeros_like(part) for part in self.made.parts)), *zeros)


def draw(family: FamilyCode, base: Base, job: SlotJob, step: int) -> JobBatch:
    """The batch of `step`, from 0. The draw is on the CPU, the conditions are on the device."""
    spec, scale = job.run.spec, job.scale(step)
    extras = scale.extras
    places = job.order.batch(step)
    is_mirrored = _chosen(spec.seed, "flip", step, places, 0.5 if spec.data.flip else 0.0)
    moments = [
        (extras.mirrored if mirrored else scale.moments)[place]
        for place, mirrored in zip(places, is_mirrored, strict=True)
    ]
    made = family.draw(base, torch.stack(moments), generator(spec.seed, "step", step))
    if spec.objective.noise_offset:
        made = replace(made, noise=offset(made.noise, spec.objective.noise_offset, spec.seed, step))
    recalled = _chosen(spec.seed, "recall", step, places, spec.objective.prior_share)
    is_dropped = _chosen(spec.seed, "silence", step, places, spec.data.caption_dropout)
    weights = family.weigh(base, made.times, spec.objective.weighting).view(-1, 1, 1, 1) * made.weights
    conditions = []
    for row, place in enumerate(places):
        captions = extras.classes if recalled[row] else extras.blanks if is_dropped[row] else scale.conditions
        conditions.append(captions[place])
        if extras.masks and not recalled[row]:  # the prior loss counts everywhere
            weights[row] *= extras.masks[place].flip(-1) if is_mirrored[row] else extras.masks[place]
    prior_weight = spec.objective.prior_weight
    made = replace(made, weights=weights, priors=made.priors + prior_weight, recalled=torch.tensor(recalled))
    return JobBatch(made, conditions, [extras.classes[place] for place in places] if prior_weight else [])


def offset(noise: Tensor, strength: float, seed: int, step: int) -> Tensor:
    """Add offset noise, which is the same in a whole channel, to noise [B, C, h, w]: helps to learn dark and bright
    pictures.

    https://www.crosslabs.org/blog/diffusion-with-offset-noise
    """
    common = torch.randn(*noise.shape[:2], 1, 1, generator=generator(seed, "offset", step))
    return noise + strength * common


def _chosen(seed: int, purpose: str, step: int, places: Sequence[int], share: float) -> list[bool]:
    """For each place of a batch, True with probability `share`."""
    if not share:
        return [False] * len(places)
    return (torch.rand(len(places), generator=generator(seed, purpose, step)) < share).tolist()
