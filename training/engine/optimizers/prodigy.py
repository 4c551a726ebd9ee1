"""Prodigy: Adam that estimates its own learning rate (https://arxiv.org/abs/2306.06101, algorithm 4), for each row.

As the authors' `prodigyopt` with bias correction and a safeguarded warm-up, which is how diffusers' scripts use it.
`rates` multiply the estimate: usually 1, or a schedule that falls from 1.
"""

import torch
from torch import Tensor

from training.engine.layout import Layout
from training.engine.optimizers.stack import BETAS, EPSILON, OptimizerParams, Stack

FIRST_GUESS = 1e-6  # of the distance from the initial weights to the solution


class Prodigy(Stack):
    """`distances` are the estimates d, per row, of the distance from the initial weights to the solution.

    They only grow.
    """

    VECTORS = ("first", "second", "sums")
    RAW = ("distances", "gains")

    def __init__(self, slots: int, layout: Layout, device: torch.device) -> None:
        super().__init__(slots, layout, device)
        self.first = torch.zeros(slots, layout.size, device=device)
        self.second = torch.zeros(slots, layout.size, device=device)
        self.sums = torch.zeros(slots, layout.size, device=device)  # of gradients, weighted
        self.starts = torch.zeros(slots, layout.size, device=device)  # initial weights: redrawn at a resume
        self.distances = torch.zeros(slots, 1, dtype=torch.float64, device=device)
        self.gains = torch.zeros(slots, 1, dtype=torch.float64, device=device)  # numerators of the estimate

    def seat(self, slot: int, terms: OptimizerParams, begun: Tensor, *, updates: int = 0) -> None:
        super().seat(slot, terms, begun, updates=updates)
        self.starts[slot].copy_(begun)
        self.distances[slot] = FIRST_GUESS

    def _held(self) -> list[str]:
        return [*super()._held(), "starts"]

    def _update(self, gradient: Tensor) -> None:
        one, two = BETAS
        three = two**0.5
        d = self.distances
        size = d * self.rates * (1 - two**self.updates).sqrt() / (1 - one**self.updates)
        way = self.starts - self.masters
        # Row by row: a kernel may split a sum over several rows differently for each row.
        along = torch.stack([torch.dot(row, gone) for row, gone in zip(gradient, way, strict=True)]).unsqueeze(1)
        self.gains.mul_(three).add_(d / FIRST_GUESS * size * along)
        self.first.mul_(one).add_(gradient * (d * (1 - one)).float())
        self.second.mul_(two).add_(gradient.square() * (d * d * (1 - two)).float())
        self.sums.mul_(three).add_(gradient * (d / FIRST_GUESS * d).float())
        spread = torch.stack([torch.linalg.vector_norm(row, 1) for row in self.sums]).unsqueeze(1)
        found = torch.where(spread > 0, self.gains / spread, 0)
        torch.maximum(d, found, out=d)
        change = self.first / (self.second.sqrt() + (d * EPSILON).float().clamp_(min=1e-30))
        self.masters.mul_((1 - size * self.decays).float())
        self.masters.sub_(change * size.float())
