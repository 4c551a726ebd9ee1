"""LoRAs on a denoiser's linears, one per slot: all of a slot's numbers in one flat float32 vector.

The modules stay diffusers' own; only the targeted linears are wrapped, under the names that peft would give them.
A stack of N slots is `[N, P]`; a batch of N x b samples is theirs in order, b to a slot. Each sample meets its own
slot's LoRA (https://arxiv.org/abs/2106.09685: y = W x + (alpha / rank) B A x), and the frozen product is made once
over all of them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from core.errors import BaseModelUnavailable
from training.backends.randomness import generator
from training.safetensor import Array

# Rows begin where vector units like it, so that a slot's sums are reckoned alike wherever it stands.
_ALIGNED = 64


@dataclass(frozen=True)
class Site:
    """One linear that gets LoRAs."""

    name: str  # diffusers' name of the module
    inputs: int
    outputs: int


class Layout:
    """Where the matrices of every site stand in a slot's vector: all downs [rank, in] first, then all ups [out, rank].

    `rank` is what slots are padded to; padding is zero and stays zero, since its gradient is.
    """

    def __init__(self, sites: Sequence[Site], rank: int) -> None:
        self.sites, self.rank = tuple(sites), rank
        self.downs = [rank * site.inputs for site in sites]
        self.ups = [site.outputs * rank for site in sites]
        self.halves = (sum(self.downs), sum(self.ups))
        padding = -sum(self.halves) % _ALIGNED
        self.size = sum(self.halves) + padding
        self._parts = [*self.halves, padding]

    def pairs(self, stack: Tensor, scales: Tensor, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """(down [N, rank, in], up [N, out, rank] times the slot's alpha / rank) of every site, in `dtype`.

        stack [N, P] and scales [N, 1] are float32; gradients flow to the stack.
        """
        downs, ups, _ = torch.split(stack, self._parts, 1)
        downs, ups = downs.to(dtype), (ups * scales).to(dtype)
        return [
            (down.view(-1, self.rank, site.inputs), up.view(-1, site.outputs, self.rank))
            for site, down, up in zip(
                self.sites, torch.split(downs, self.downs, 1), torch.split(ups, self.ups, 1), strict=True
            )
        ]

    def begin(self, seed: int, rank: int) -> Tensor:
        """A slot's vector [P] at step 0, on the CPU: peft's default start, drawn from the job's seed.

        A is uniform in ±1/sqrt(in) (kaiming with a = sqrt 5), B zero; peft: LoraLayer.reset_lora_parameters.
        """
        drawn = {}
        for place, site in enumerate(self.sites):
            bound = site.inputs**-0.5
            chance = generator(seed, "start", place)
            down = torch.empty(rank, site.inputs).uniform_(-bound, bound, generator=chance)
            drawn[f"{site.name}.down"] = down.numpy()
            drawn[f"{site.name}.up"] = np.zeros((site.outputs, rank), np.float32)
        return self.fill(drawn)

    def fill(self, arrays: Mapping[str, Array]) -> Tensor:
        """A slot's vector [P] from arrays by the names of `read`; what they do not fill is zero."""
        vector = torch.zeros(self.size)
        for name, view in self._views(vector).items():
            held = torch.from_numpy(np.array(arrays[name], np.float32))
            view[tuple(slice(length) for length in held.shape)] = held
        return vector

    def read(self, vector: Tensor, rank: int) -> dict[str, Array]:
        """`{module}.down` [rank, in] and `{module}.up` [out, rank] of a slot's vector, float32, without padding."""
        views = self._views(vector.detach().to("cpu", torch.float32, copy=True))
        return {
            name: (view[:rank] if name.endswith(".down") else view[:, :rank]).contiguous().numpy()
            for name, view in views.items()
        }

    def _views(self, vector: Tensor) -> dict[str, Tensor]:
        found = {}
        edges = [0, *np.cumsum([*self.downs, *self.ups]).tolist()]
        spans = [vector[begin:end] for begin, end in pairwise(edges)]
        downs, ups = spans[: len(self.sites)], spans[len(self.sites) :]
        for site, down, up in zip(self.sites, downs, ups, strict=True):
            found[f"{site.name}.down"] = down.view(self.rank, site.inputs)
            found[f"{site.name}.up"] = up.view(site.outputs, self.rank)
        return found


class Ports:
    """The wrapped linears of one denoiser, and what they apply at the moment: nothing, or one pair per site."""

    def __init__(self, denoiser: nn.Module, targets: str) -> None:
        """Wrap every linear whose full name matches `targets`. Raises BaseModelUnavailable if there is none."""
        found = {
            name: module
            for name, module in denoiser.named_modules()
            if isinstance(module, nn.Linear) and re.fullmatch(targets, name)
        }
        if not found:
            raise BaseModelUnavailable("the base model has no layers for a LoRA: is it of another family?")
        self.pairs: list[tuple[Tensor, Tensor]] | None = None
        self.sites = [Site(name, found[name].in_features, found[name].out_features) for name in sorted(found)]
        for place, site in enumerate(self.sites):
            parent, _, last = site.name.rpartition(".")
            setattr(denoiser.get_submodule(parent), last, _Port(found[site.name], self, place))


class _Port(nn.Module):
    """A frozen linear with one LoRA per slot beside it."""

    def __init__(self, inner: nn.Linear, ports: Ports, place: int) -> None:
        super().__init__()
        self.inner, self._ports, self._place = inner, ports, place
        self.in_features, self.out_features = inner.in_features, inner.out_features

    @property
    def weight(self) -> Tensor:
        """The frozen weight, which diffusers' modules ask for its dtype."""
        return self.inner.weight

    @property
    def bias(self) -> Tensor | None:
        return self.inner.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [N x b, ..., in] to [N x b, ..., out]."""
        if self._ports.pairs is None:
            said: Tensor = self.inner(x)
            return said
        down, up = self._ports.pairs[self._place]
        per_slot = x.reshape(len(down), -1, self.in_features)
        made: Tensor = _Product.apply(per_slot, self.inner.weight, self.inner.bias, down, up)  # type: ignore[no-untyped-call]
        return made.view(*x.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """x W^T + bias + (x A^T) B^T: x [N, M, in], W [out, in], A [N, r, in], B [N, out, r]; nothing for W and bias.

    By hand, because autograd would keep the LoRA's product in memory and add it in an operation of its own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        said = functional.linear(x, weight, bias)
        if len(down) == 1:
            low = torch.mm(x[0], down[0].t())
            said[0].addmm_(low, up[0].t())
        else:
            low = torch.bmm(x, down.transpose(1, 2))
            said.baddbmm_(low, up.transpose(1, 2))
        ctx.save_for_backward(x, weight, down, up, low)
        return said

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, down, up, low = ctx.saved_tensors
        (g,) = gradients
        wanted = ctx.needs_input_grad[0]  # not of the first layers: nothing below them learns
        dx = None
        if len(down) == 1:
            flat = g[0]
            d_low = torch.mm(flat, up[0])
            d_up, d_down = torch.mm(flat.t(), low)[None], torch.mm(d_low.t(), x[0])[None]
            if wanted:
                dx = torch.mm(flat, weight).addmm_(d_low, down[0])[None]
        else:
            d_low = torch.bmm(g, up)
            d_up, d_down = torch.bmm(g.transpose(1, 2), low), torch.bmm(d_low.transpose(1, 2), x)
            if wanted:
                dx = torch.matmul(g, weight).baddbmm_(d_low, down)
        return dx, None, None, d_down, d_up


def padded(rank: int) -> int:
    """The rank of the stack that a job of `rank` is trained in: the next power of two, at least 4."""
    return max(4, 1 << (rank - 1).bit_length())


def pairs_of(weights: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    """From arrays by the names of `Layout.read` to (down, up) by module."""
    modules = sorted({name.rsplit(".", 1)[0] for name in weights})
    return {module: (weights[f"{module}.down"], weights[f"{module}.up"]) for module in modules}
