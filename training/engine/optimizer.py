"""The weights of N slots and what moves them: each row with its own rate, decay and count of updates, all in one pass.

Nothing here waits for the device, and no row's numbers depend on another row's. What jobs ask for are numbers in
`[N, 1]`; only another kind of optimizer takes other operations, and so another stack.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from training.engine.layout import Layout
from training.lora.safetensor import Array
from training.spec import TrainSpec

BETAS = (0.9, 0.999)
EPSILON = 1e-8
# As torch.amp.GradScaler begins and goes on.
FIRST_LOSS_SCALE, MOST_LOSS_SCALE, LOSS_SCALE_GROWS_AFTER = 2.0**16, 2.0**24, 2000

# What is kept of an optimizer in a checkpoint: arrays by name, in parts.
Kept = Mapping[str, Mapping[str, Array]]


@dataclass(frozen=True)
class OptimizerParams:
    """What a job asks of its row."""

    rate: float
    scale: float  # of its LoRA, see TrainSpec.scale
    ratio: float = 1.0  # rate of B over rate of A, LoRA+: https://arxiv.org/abs/2402.12354
    decay: float = 1e-2  # decoupled: times the rate at every update, https://arxiv.org/abs/1711.05101
    clip: float = 1.0  # gradients are scaled down to this length
    averaging: float = 0.0  # share of the average that an update leaves; 0: there is none

    @classmethod
    def of(cls, spec: TrainSpec) -> "OptimizerParams":
        asked = spec.optimization
        return cls(
            spec.learning_rate,
            spec.scale,
            asked.loraplus_ratio,
            asked.weight_decay,
            asked.max_grad_norm,
            asked.ema_decay,
        )


class Stack(ABC):
    """The float32 masters of N slots [N, P] and an optimizer's state of them. An empty slot is zero and stays zero."""

    VECTORS: ClassVar[Sequence[str]] = ()  # state [N, P], laid out as the weights are
    RAW: ClassVar[Sequence[str]] = ()  # state [N, ...] of its own form
    _ROW = ("updates", "rates", "ratios", "decays", "clips", "averagings", "scales", "loss_scales", "finite_steps")
    _SCALING = ("updates", "loss_scales", "finite_steps")  # kept beside RAW where losses are scaled

    def __init__(self, slots: int, layout: Layout, device: torch.device) -> None:
        self.layout, self.device = layout, device
        self.masters = torch.zeros(slots, layout.size, device=device, requires_grad=True)
        self.averages: Tensor | None = None  # [N, P], once a job asks for one
        # float64: 1 - 0.999^t of a young slot would lose digits.
        wide = torch.zeros(slots, 1, dtype=torch.float64, device=device)
        self.updates, self.rates, self.ratios, self.decays, self.averagings = (wide.clone() for _ in range(5))
        self.clips = torch.zeros(slots, 1, device=device)
        self.scales = torch.zeros(slots, 1, device=device)
        # With a base in float16 each slot's loss is scaled, so that its gradient neither vanishes nor overflows.
        self.is_scaled = False
        self.loss_scales = torch.zeros(slots, 1, device=device)
        self.finite_steps = torch.zeros(slots, 1, device=device)  # since its loss scale changed
        self._last_rates: list[float] = []  # rates, as they were set last
        self._averaged = [False] * slots

    @abstractmethod
    def _update(self, gradient: Tensor) -> None:
        """Move the masters along the clipped gradient [N, P]; `updates` counts this one already. Without autograd."""

    # ---- coming and going ----

    def seat(self, slot: int, terms: OptimizerParams, begun: Tensor, *, updates: int = 0) -> None:
        """Fill a slot with the weights [P] of step 0, and no state yet; after `updates`, `load` follows."""
        self.clear(slot)
        self.masters.data[slot].copy_(begun)
        for name, value in (
            *[("updates", updates), ("rates", terms.rate), ("ratios", terms.ratio), ("decays", terms.decay)],
            *[("clips", terms.clip), ("averagings", terms.averaging), ("scales", terms.scale)],
            ("loss_scales", FIRST_LOSS_SCALE),
        ):
            getattr(self, name)[slot] = value
        self._averaged[slot] = terms.averaging > 0
        if self._averaged[slot]:
            if self.averages is None:
                self.averages = torch.zeros_like(self.masters, requires_grad=False)
            self.averages[slot].copy_(begun)

    def load(self, slot: int, kept: Kept) -> None:
        """Put `weights` and what `state` gave into a slot that is seated."""
        parts = {"weights": self.masters.data, **{name: getattr(self, name) for name in self.VECTORS}}
        if self.averages is not None and self._averaged[slot]:
            parts["average"] = self.averages
        for name, part in parts.items():
            part[slot].copy_(self.layout.fill(kept[name]))
        for name in self._raw():
            row = getattr(self, name)[slot]
            row.copy_(torch.from_numpy(np.array(kept["optimizer"][name])).view(row.shape))

    def state(self, slot: int, rank: int) -> dict[str, dict[str, Array]]:
        """What a slot of that rank has beside its weights, on the host: parts by name, for a checkpoint."""
        kept = {name: self.layout.read(getattr(self, name)[slot], rank) for name in self.VECTORS}
        if self._averaged[slot]:
            kept["average"] = self.layout.read(self.effective_weights(slot), rank)
        raw = {name: getattr(self, name)[slot].cpu().numpy().copy() for name in self._raw()}
        return kept | ({"optimizer": raw} if raw else {})

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self._averaged[slot], self._last_rates = False, []
        for name in self._held():
            getattr(self, name).data[slot].zero_()

    def copy(self, slot: int, other: "Stack", source: int) -> None:
        """Fill a slot from another stack's of the same kind."""
        if other.averages is not None and self.averages is None:
            self.averages = torch.zeros_like(self.masters, requires_grad=False)
        for name in other._held():
            getattr(self, name).data[slot].copy_(getattr(other, name).data[source])
        self._averaged[slot], self._last_rates = other._averaged[source], []
        self.is_scaled = other.is_scaled

    def effective_weights(self, slot: int) -> Tensor:
        """The weights [P] that a slot's job will deliver: their average, where it asks for one."""
        whole = self.averages if self.averages is not None and self._averaged[slot] else self.masters
        return whole.detach()[slot]

    def _raw(self) -> Sequence[str]:
        """The names of the state that a checkpoint keeps in its own form."""
        return (*self.RAW, *self._SCALING) if self.is_scaled else self.RAW

    def _held(self) -> list[str]:
        """The names of all tensors that have a row for every slot."""
        return ["masters", *self._ROW, *self.VECTORS, *self.RAW, *(["averages"] if self.averages is not None else [])]

    # ---- a step ----

    def set_rates(self, rates: Sequence[float]) -> None:
        """The rate of every slot's next update; does not wait for the device."""
        if list(rates) != self._last_rates:
            self._last_rates = list(rates)
            self.rates.copy_(torch.tensor(self._last_rates, dtype=torch.float64).unsqueeze(1), non_blocking=True)

    def step(self) -> None:
        """One update from `masters.grad`, which is cleared."""
        gradient = self.masters.grad
        assert gradient is not None  # noqa: S101 - a step follows a backward
        with torch.no_grad():
            if self.is_scaled:
                self._scaled_step(gradient)
            else:
                self._clipped_step(gradient)
        self.masters.grad = None

    def _clipped_step(self, gradient: Tensor) -> None:
        clip(gradient, self.clips)
        self.updates += 1
        self._update(gradient)

    def _scaled_step(self, gradient: Tensor) -> None:
        """The update of the rows whose gradient did not overflow; the others stay, and get half their loss scale.

        Each row by itself, so that a job's overflow is its own. As torch.amp.GradScaler has it:
        https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
        """
        gradient.div_(self.loss_scales.clamp(min=1.0))
        is_finite = torch.stack([row.isfinite().all() for row in gradient]).unsqueeze(1)
        gradient.masked_fill_(~is_finite, 0.0)
        names = ("masters", "updates", *self.VECTORS, *self.RAW)
        before = {name: getattr(self, name).detach().clone() for name in names}
        self._clipped_step(gradient)
        for name, old in before.items():
            new = getattr(self, name).detach()
            new.copy_(torch.where(is_finite.view(-1, *[1] * (new.ndim - 1)), new, old))
        self.finite_steps.add_(1).mul_(is_finite)
        grows = self.finite_steps >= LOSS_SCALE_GROWS_AFTER
        self.loss_scales.mul_(torch.where(is_finite, 1.0 + grows.float(), 0.5)).clamp_(max=MOST_LOSS_SCALE)
        self.finite_steps.mul_(~grows)

    def average(self) -> None:
        """Let the averages follow the masters; after a step, where a job asks for one.

        As diffusers' EMAModel: an average that is young follows faster, min(decay, (1 + k) / (10 + k)) at update k + 1.
        """
        if self.averages is None:
            return
        done = self.updates - 1
        left = torch.minimum(self.averagings, (1 + done) / (10 + done)) * (done > 0)
        self.averages.lerp_(self.masters.detach(), (1 - left).float())


class AdamW(Stack):
    """AdamW as torch.optim.AdamW reckons it: https://arxiv.org/abs/1711.05101, algorithm 2."""

    VECTORS: ClassVar[Sequence[str]] = ("first", "second")

    def __init__(self, slots: int, layout: Layout, device: torch.device) -> None:
        super().__init__(slots, layout, device)
        self.first = torch.zeros(slots, layout.size, device=device)
        self.second = torch.zeros(slots, layout.size, device=device)

    def _update(self, gradient: Tensor) -> None:
        self._move(gradient, self.first, self.second)

    def _move(self, gradient: Tensor, first: Tensor, second: Tensor) -> None:
        """One update of the moments [N, P], which are changed, and of the masters."""
        terms = self.updates, self.rates, self.ratios, self.decays, self.layout.boundary
        _adamw(self.masters.detach(), gradient, first, second, *terms)


# ---- functions of tensors ------------------------------------------------------------------------------------------


def clip(gradient: Tensor, clips: Tensor) -> None:
    """Scale each row [N, P] down to its longest length [N, 1].

    Row by row: a sum over several rows at once may be split differently for each.
    """
    norms = torch.stack([torch.linalg.vector_norm(row) for row in gradient]).unsqueeze(1)
    gradient.mul_((clips / (norms + 1e-6)).clamp_(max=1.0))


def _adamw(
    masters: Tensor, gradient: Tensor, first: Tensor, second: Tensor, updates: Tensor, rates: Tensor, ratios: Tensor,
    decays: Tensor, boundary: int,
) -> None:  # fmt: skip
    """One update, in place, of masters and moments [N, P]; what stands before `boundary` has the rate of A."""
    one, two = BETAS
    for part, own in _halves(masters, boundary, rates, ratios):
        part.mul_((1 - own * decays).float())
    first.lerp_(gradient, 1 - one)
    second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
    root = (1 - two**updates).sqrt().float()
    change = first / second.sqrt().div_(root).add_(EPSILON)
    for part, own in _halves(change, boundary, rates, ratios):
        part.mul_((own / (1 - one**updates)).float())
    masters.sub_(change)


def _halves(whole: Tensor, boundary: int, rates: Tensor, ratios: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """What belongs to A in a stack [N, P], and the rest, each with its rate [N, 1]: LoRA+ has two."""
    return (whole[:, :boundary], rates), (whole[:, boundary:], rates * ratios)
