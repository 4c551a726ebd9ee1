"""The weights of N slots and their optimizer: each row has its own rate, decay and update count, all in one pass.

Nothing here waits for the device, and no row's numbers depend on another row. The parameters of jobs are numbers in
`[N, 1]` tensors; a different optimizer needs different operations, so it has its own stack.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from training.engine.layout import Layout, Span
from training.lora.safetensor import Array
from training.options import Ranks
from training.spec import TrainSpec

BETAS = (0.9, 0.999)
EPSILON = 1e-8
# The first and the growth interval are those of torch.amp.GradScaler.
FIRST_LOSS_SCALE, MOST_LOSS_SCALE, LOSS_SCALE_GROWS_AFTER = 2.0**16, 2.0**24, 2000

# The state of an optimizer in a checkpoint: arrays by name, in parts.
Kept = Mapping[str, Mapping[str, Array]]


@dataclass(frozen=True)
class OptimizerParams:
    """The parameters of one job's row."""

    rate: float
    scales: tuple[float, float]  # of its LoRA, see TrainSpec.scales
    ratio: float = 1.0  # rate of B over rate of A (LoRA+, https://arxiv.org/abs/2402.12354)
    text_ratio: float = 1.0  # rate of text encoders over that of the denoiser
    decay: float = 1e-2  # decoupled, multiplied by the rate (https://arxiv.org/abs/1711.05101)
    clip: float = 1.0  # the maximum norm of a gradient
    averaging: float = 0.0  # decay of the averaged weights; 0: no average

    @classmethod
    def of(cls, spec: TrainSpec) -> "OptimizerParams":
        asked = spec.optimization
        return cls(
            spec.learning_rate,
            spec.scales,
            asked.loraplus_ratio,
            spec.text_encoder_rate / spec.learning_rate,
            asked.weight_decay,
            asked.max_grad_norm,
            asked.ema_decay,
        )


class Stack(ABC):
    """The float32 weights of N slots, `masters` [N, P], and the state of their optimizer. Empty slots stay zero."""

    VECTORS: ClassVar[Sequence[str]] = ()  # names of state [N, P] with the layout of the weights
    RAW: ClassVar[Sequence[str]] = ()  # names of state [N, ...] of another form
    _ROW = (
        *("updates", "rates", "ratios", "text_ratios", "decays", "clips", "averagings", "scales"),
        *("loss_scales", "finite_steps"),
    )
    _SCALING = ("updates", "loss_scales", "finite_steps")  # kept with RAW if losses are scaled

    def __init__(self, slots: int, layout: Layout, device: torch.device) -> None:
        self.layout, self.device = layout, device
        self.masters = torch.zeros(slots, layout.size, device=device, requires_grad=True)
        self.averages: Tensor | None = None  # [N, P], created for the first job that averages
        # float64: 1 - 0.999^t loses digits in float32 for small t.
        wide = torch.zeros(slots, 1, dtype=torch.float64, device=device)
        self.updates, self.rates, self.ratios, self.decays, self.averagings = (wide.clone() for _ in range(5))
        self.text_ratios = wide.clone()
        self.clips = torch.zeros(slots, 1, device=device)
        self.scales = torch.zeros(slots, 2, device=device)
        # With a base in float16, the loss of each slot is scaled so that its gradient neither vanishes nor overflows.
        self.is_scaled = False
        self.loss_scales = torch.zeros(slots, 1, device=device)
        self.finite_steps = torch.zeros(slots, 1, device=device)  # since the last change of the loss scale
        self._last_rates: list[float] = []  # the last argument of `set_rates`
        self._averaged = [False] * slots

    @abstractmethod
    def _update(self, gradient: Tensor) -> None:
        """Update the masters from the clipped gradient [N, P], without autograd. `updates` includes this update."""

    # ---- joining and leaving ----

    def seat(self, slot: int, terms: OptimizerParams, begun: Tensor, *, updates: int = 0) -> None:
        """Fill a slot with the weights [P] of step 0 and an empty state. For a later step, call `load` next."""
        self.clear(slot)
        self.masters.data[slot].copy_(begun)
        for name, value in (
            *[("updates", updates), ("rates", terms.rate), ("ratios", terms.ratio), ("decays", terms.decay)],
            ("text_ratios", terms.text_ratio),
            *[("clips", terms.clip), ("averagings", terms.averaging)],
            ("loss_scales", FIRST_LOSS_SCALE),
        ):
            getattr(self, name)[slot] = value
        for column, scale in enumerate(terms.scales):  # no copy from the host, which would wait for the device
            self.scales[slot, column] = scale
        self._averaged[slot] = terms.averaging > 0
        if self._averaged[slot]:
            if self.averages is None:
                self.averages = torch.zeros_like(self.masters, requires_grad=False)
            self.averages[slot].copy_(begun)

    def load(self, slot: int, kept: Kept) -> None:
        """Load a checkpoint into a filled slot: `weights`, and the output of `state`."""
        parts = {"weights": self.masters.data, **{name: getattr(self, name) for name in self.VECTORS}}
        if self.averages is not None and self._averaged[slot]:
            parts["average"] = self.averages
        for name, part in parts.items():
            part[slot].copy_(self.layout.fill(kept[name]))
        for name in self._raw():
            row = getattr(self, name)[slot]
            row.copy_(torch.from_numpy(np.array(kept["optimizer"][name])).view(row.shape))

    def state(self, slot: int, ranks: Ranks) -> dict[str, dict[str, Array]]:
        """The state of a slot of those ranks besides its weights, on the host, for a checkpoint."""
        kept = {name: self.layout.read(getattr(self, name)[slot], ranks) for name in self.VECTORS}
        if self._averaged[slot]:
            kept["average"] = self.layout.read(self.effective_weights(slot), ranks)
        raw = {name: getattr(self, name)[slot].cpu().numpy().copy() for name in self._raw()}
        return kept | ({"optimizer": raw} if raw else {})

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self._averaged[slot], self._last_rates = False, []
        for name in self._held():
            getattr(self, name).data[slot].zero_()

    def copy(self, slot: int, other: "Stack", source: int) -> None:
        """Fill a slot with slot `source` of another stack of the same class."""
        if other.averages is not None and self.averages is None:
            self.averages = torch.zeros_like(self.masters, requires_grad=False)
        for name in other._held():
            getattr(self, name).data[slot].copy_(getattr(other, name).data[source])
        self._averaged[slot], self._last_rates = other._averaged[source], []
        self.is_scaled = other.is_scaled

    def effective_weights(self, slot: int) -> Tensor:
        """The weights [P] that a slot's job would deliver: averaged, if it averages."""
        whole = self.averages if self.averages is not None and self._averaged[slot] else self.masters
        return whole.detach()[slot]

    def _raw(self) -> Sequence[str]:
        """The names of the state that a checkpoint stores as it is."""
        return (*self.RAW, *self._SCALING) if self.is_scaled else self.RAW

    def _held(self) -> list[str]:
        """The names of all tensors with a row per slot."""
        return ["masters", *self._ROW, *self.VECTORS, *self.RAW, *(["averages"] if self.averages is not None else [])]

    # ---- a step ----

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rate of each slot. Does not wait for the device."""
        if list(rates) != self._last_rates:
            self._last_rates = list(rates)
            self.rates.copy_(torch.tensor(self._last_rates, dtype=torch.float64).unsqueeze(1), non_blocking=True)

    def step(self) -> None:
        """One update from `masters.grad`, which is then cleared."""
        gradient = self.masters.grad
        assert gradient is not None  # noqa: S101 - a step follows a backward pass
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
        """Update the rows whose gradient did not overflow. The others are unchanged, and their loss scale is halved.

        As in torch.amp.GradScaler, but for each row, so that a job's overflow does not affect others:
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
        """Update the averages after a step, if there are any.

        As diffusers' EMAModel, a new average follows faster: its decay at update k + 1 is
        min(decay, (1 + k) / (10 + k)).
        """
        if self.averages is None:
            return
        done = self.updates - 1
        left = torch.minimum(self.averagings, (1 + done) / (10 + done)) * (done > 0)
        self.averages.lerp_(self.masters.detach(), (1 - left).float())


class AdamW(Stack):
    """AdamW as in torch.optim.AdamW: https://arxiv.org/abs/1711.05101, algorithm 2."""

    VECTORS: ClassVar[Sequence[str]] = ("first", "second")

    def __init__(self, slots: int, layout: Layout, device: torch.device) -> None:
        super().__init__(slots, layout, device)
        self.first = torch.zeros(slots, layout.size, device=device)
        self.second = torch.zeros(slots, layout.size, device=device)

    def _update(self, gradient: Tensor) -> None:
        self._move(gradient, self.first, self.second)

    def _move(self, gradient: Tensor, first: Tensor, second: Tensor) -> None:
        """Update the moments [N, P] in place, and the masters."""
        rates = [
            (span.begin, span.end, _rates(span, self.rates, self.ratios, self.text_ratios))
            for span in self.layout.spans
        ]
        _adamw(self.masters.detach(), gradient, first, second, self.updates, rates, self.decays)


# ---- functions of tensors ------------------------------------------------------------------------------------------


def clip(gradient: Tensor, clips: Tensor) -> None:
    """Scale each row of [N, P] down to its maximum norm in [N, 1].

    Row by row, because a kernel may split a sum over several rows differently for each row.
    """
    norms = torch.stack([torch.linalg.vector_norm(row) for row in gradient]).unsqueeze(1)
    gradient.mul_((clips / (norms + 1e-6)).clamp_(max=1.0))


def _adamw(
    masters: Tensor, gradient: Tensor, first: Tensor, second: Tensor, updates: Tensor,
    rates: Sequence[tuple[int, int, Tensor]], decays: Tensor,
) -> None:  # fmt: skip
    """Update masters and moments [N, P] in place. rates: the rates [N, 1] of the numbers from one place to another."""
    one, two = BETAS
    for begin, end, own in rates:
        masters[:, begin:end].mul_((1 - own * decays).float())
    first.lerp_(gradient, 1 - one)
    second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
    root = (1 - two**updates).sqrt().float()
    change = first / second.sqrt().div_(root).add_(EPSILON)
    for begin, end, own in rates:
        change[:, begin:end].mul_((own / (1 - one**updates)).float())
    masters.sub_(change)


def _rates(span: Span, rates: Tensor, ratios: Tensor, text_ratios: Tensor) -> Tensor:
    """The rates [N, 1] of a part of the numbers: in LoRA+ that of B differs, and text encoders may have their own."""
    rates = rates * ratios if span.is_up else rates
    return rates * text_ratios if span.is_text else rates
