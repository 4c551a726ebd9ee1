"""AdamW over a stack of slots: each row with its own rate and its own count of updates, all in one pass.

https://arxiv.org/abs/1711.05101, algorithm 2, as torch.optim.AdamW reckons it; gradients clipped to a norm per row.
Nothing here waits for the device, and no row's numbers depend on another row's.
"""

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8
WEIGHT_DECAY = 1e-2
MAX_GRADIENT_NORM = 1.0


class Stack:
    """The float32 masters of N slots [N, P], and AdamW's two moments of them. An empty slot is zero and stays zero."""

    def __init__(self, slots: int, size: int, device: torch.device) -> None:
        self.masters = torch.zeros(slots, size, device=device, requires_grad=True)
        self.first = torch.zeros(slots, size, device=device)
        self.second = torch.zeros(slots, size, device=device)
        # float64: 1 - 0.999^t of a young slot would lose digits.
        self.updates = torch.zeros(slots, 1, dtype=torch.float64, device=device)
        self.rates = torch.zeros(slots, 1, dtype=torch.float64, device=device)
        self.scales = torch.zeros(slots, 1, device=device)  # alpha / rank

    def seat(
        self, slot: int, masters: Tensor, first: Tensor, second: Tensor, *, updates: int, rate: float, scale: float
    ) -> None:
        """Fill a slot; the vectors are [P]."""
        with torch.no_grad():
            self.masters[slot].copy_(masters)
        self.first[slot].copy_(first)
        self.second[slot].copy_(second)
        self.updates[slot], self.rates[slot], self.scales[slot] = updates, rate, scale

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        with torch.no_grad():
            self.masters[slot].zero_()
        for part in (self.first, self.second, self.updates, self.rates, self.scales):
            part[slot].zero_()

    def step(self) -> None:
        """One update from `masters.grad`, which is cleared."""
        gradient = self.masters.grad
        assert gradient is not None  # noqa: S101 - a step follows a backward
        # Row by row: a sum over several rows at once may be split differently for each.
        norms = torch.stack([torch.linalg.vector_norm(row) for row in gradient]).unsqueeze(1)
        gradient.mul_((MAX_GRADIENT_NORM / (norms + 1e-6)).clamp_(max=1.0))
        one, two = BETAS
        self.updates += 1
        size = (self.rates / (1 - one**self.updates)).float()
        root = (1 - two**self.updates).sqrt().float()
        with torch.no_grad():
            self.masters.mul_((1 - self.rates * WEIGHT_DECAY).float())
            self.first.lerp_(gradient, 1 - one)
            self.second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
            self.masters.sub_(self.first / (self.second.sqrt().div_(root).add_(EPSILON)) * size)
        self.masters.grad = None

    def copy(self, slot: int, other: "Stack", source: int) -> None:
        """Fill a slot from another stack's."""
        for name in ("masters", "first", "second", "updates", "rates", "scales"):
            getattr(self, name).data[slot].copy_(getattr(other, name).data[source])
