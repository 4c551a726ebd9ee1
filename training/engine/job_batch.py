"""What one job brings to one step: which pictures, how they are met, what counts. A pure function of (seed, step)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.engine.randomness import generator
from training.engine.slot_job import SlotJob
from training.families.family import Base, Condition, Draw, Family


@dataclass(frozen=True)
class JobBatch:
    """One job's part of a step."""

    made: Draw
    conditions: list[Condition]
    classes: list[Condition]  # of the class captions; empty where no prior is kept beside pictures

    def empty(self) -> "JobBatch":
        """Zeros in its shape. Nobody's numbers: what fills idle slots must not depend on who is there."""
        none = [[{name: torch.zeros_like(value) for name, value in one.items()} for one in told] for told in
                (self.conditions, self.classes)]  # fmt: skip
        return JobBatch(Draw(*(torch.zeros_like(part) for part in self.made.parts)), *none)


def draw(family: Family, base: Base, job: SlotJob, step: int) -> JobBatch:
    """The batch of `step`, counted from 0, on the CPU."""
    spec, extras = job.run.spec, job.extras
    places = job.order.batch(step)
    turned = _chosen(spec.seed, "flip", step, places, 0.5 if spec.data.flip else 0.0)
    moments = [
        (extras.mirrored if is_turned else job.moments)[place] for place, is_turned in zip(places, turned, strict=True)
    ]
    made = family.draw(base, torch.stack(moments), generator(spec.seed, "step", step))
    if spec.objective.noise_offset:
        made = replace(made, noise=offset(made.noise, spec.objective.noise_offset, spec.seed, step))
    recalled = _chosen(spec.seed, "recall", step, places, spec.objective.prior_share)
    silent = _chosen(spec.seed, "silence", step, places, spec.data.caption_dropout)
    told, counts = [], family.weigh(base, made.times, spec.objective.weighting).view(-1, 1, 1, 1) * made.weights
    for row, place in enumerate(places):
        captions = extras.classes if recalled[row] else extras.blanks if silent[row] else job.conditions
        told.append(captions[place])
        if extras.masks and not recalled[row]:  # the base is recalled everywhere
            counts[row] *= extras.masks[place].flip(-1) if turned[row] else extras.masks[place]
    weight = spec.objective.prior_weight
    made = replace(made, weights=counts, priors=made.priors + weight, recalled=torch.tensor(recalled))
    return JobBatch(made, told, [extras.classes[place] for place in places] if weight else [])


def offset(noise: Tensor, strength: float, seed: int, step: int) -> Tensor:
    """Noise [B, C, h, w] with a share that a whole channel has in common, so that dark and bright pictures are learnt.

    https://www.crosslabs.org/blog/diffusion-with-offset-noise
    """
    common = torch.randn(*noise.shape[:2], 1, 1, generator=generator(seed, "offset", step))
    return noise + strength * common


def _chosen(seed: int, purpose: str, step: int, places: Sequence[int], share: float) -> list[bool]:
    """Whether chance decides for something, for each place of a batch."""
    if not share:
        return [False] * len(places)
    return (torch.rand(len(places), generator=generator(seed, purpose, step)) < share).tolist()
