"""Muon: momentum with orthogonalised matrices. Weights that are not matrices are trained with AdamW.

https://kellerjordan.github.io/posts/muon/, with the scale of https://arxiv.org/abs/2502.16982 (equation 4), so that
AdamW's learning rate fits. docs/tutorial.md has the gain.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that brings singular values near one


class Muon(torch.optim.Optimizer):
    """For weights of at least two dimensions; all dimensions but the first count as one."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient. Weights of the same shape are orthogonalised together."""
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    held = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                    held.lerp_(weight.grad, 1 - _MOMENTUM)
                    ahead = weight.grad.lerp(held, _MOMENTUM).flatten(1)
                    alike[ahead.shape[0], ahead.shape[1]].append((weight, ahead))
            for (rows, columns), some in alike.items():
                updates = orthogonal(torch.stack([ahead for _, ahead in some]))
                scale = 0.2 * max(rows, columns) ** 0.5
                for (weight, _), update in zip(some, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update.view(weight.shape), alpha=-group["lr"] * scale)


def orthogonal(matrices: Tensor, rounds: int = 4) -> Tensor:
    """Orthogonalise matrices [N, rows, columns]: Newton-Schulz brings their singular values near one, in bfloat16."""
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    turned = x.shape[1] > x.shape[2]
    x = x.mT if turned else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    made: Tensor = (x.mT if turned else x).float()
    return made
