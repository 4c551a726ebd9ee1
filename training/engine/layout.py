"""The position of each LoRA matrix in a slot's weights: one flat float32 vector [P], so a stack of N slots is [N, P].

Layers have the names that peft gives them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.engine.randomness import generator
from training.families.weights.quantised import weight_of
from training.lora.file import Matrices
from training.lora.safetensor import Array
from training.options import Ranks

# Rows are aligned for vector units, so that the sums of a slot do not depend on its position.
_ALIGNED = 64
_SHORTEST = 1e-12  # lower bound of squared row lengths: a row of zeros must not divide by zero


@dataclass(frozen=True)
class Site:
    """One layer that may get a LoRA. A convolution is a linear over the channels of all places of its kernel."""

    name: str  # diffusers' name of the module
    inputs: int  # of a convolution: channels times the places of its kernel
    outputs: int
    is_convolution: bool
    place: int  # index among all wrapped layers of the denoiser
    layer: nn.Module = field(compare=False, repr=False)
    kernel: tuple[int, int] = (1, 1)  # of a convolution
    is_text: bool = False  # of a text encoder, which has a learning rate of its own

    @property
    def is_spatial(self) -> bool:
        """Whether it is a convolution over several pixels, which may have a rank of its own."""
        return self.kernel != (1, 1)

    def rank(self, ranks: Ranks) -> int:
        """Its rank in a LoRA of these ranks."""
        return ranks.of(spatial=self.is_spatial)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, [out, in], dequantised if necessary."""
        return weight_of(self.layer).flatten(1)


class LoRA(NamedTuple):
    """The LoRAs of all slots on one layer, in the dtype of the base."""

    lora_a: Tensor  # [N, rank, in]
    lora_b: Tensor  # [N, out, rank], multiplied by the slot's scale
    stretch: Tensor | None = None  # for DoRA, [N, 1, out]: magnitude / |W + B A| - 1 of each row


class Span(NamedTuple):
    """A part of a slot's vector whose numbers have one learning rate."""

    begin: int
    end: int
    is_up: bool  # with the rate of B in LoRA+
    is_text: bool  # of text encoders


class Layout:
    """The positions of all layers' numbers in a slot's vector: first all downs [rank, in], then all ups [out, rank],
    and with DoRA all magnitudes [out].

    `ranks` are the padded ranks. Padding is zero and stays zero, because its gradient is zero.
    """

    def __init__(self, sites: Sequence[Site], ranks: Ranks, *, dora: bool = False, places: int | None = None) -> None:
        """places: the number of all wrapped layers; `sites` may be some of them. None: `sites` are all."""
        self.sites, self.ranks, self.dora = tuple(sites), ranks, dora
        self._ranks = [site.rank(ranks) for site in sites]
        self.downs = [rank * site.inputs for site, rank in zip(sites, self._ranks, strict=True)]
        self.ups = [site.outputs * rank for site, rank in zip(sites, self._ranks, strict=True)]
        self.magnitudes = [site.outputs for site in sites] if dora else []
        # Which scale the ups have that follow each other, and how many numbers they are.
        self._scaled_runs = [
            (int(is_spatial), sum(width for _, width in run))
            for is_spatial, run in groupby(zip(sites, self.ups, strict=True), key=lambda one: one[0].is_spatial)
        ]
        parts = [sum(self.downs), sum(self.ups), sum(self.magnitudes)]
        self.size = sum(parts) + -sum(parts) % _ALIGNED
        self._parts = [*parts, self.size - sum(parts)]
        # The parts of a vector with a learning rate of their own, in order; the last one includes the padding.
        self.spans = self._find_spans()
        self._places = len(self.sites) if places is None else places
        self._squares = [site.weight.float().pow(2).sum(1) for site in sites] if dora else []  # |W|^2 of each row

    def loras(self, stack: Tensor, scales: Tensor, dtype: torch.dtype) -> list[LoRA | None]:
        """The LoRAs of all slots by the place of their layer; None for a layer without LoRA.

        stack [N, P] and scales [N, 2], see `TrainSpec.scales`, are float32. The result is differentiable with respect
        to the stack.
        """
        downs, ups, magnitudes, _ = torch.split(stack, self._parts, 1)
        downs, ups = downs.to(dtype), self._scaled(ups, scales).to(dtype)
        made: list[LoRA | None] = [None] * self._places
        for site, rank, down, up in zip(
            self.sites, self._ranks, torch.split(downs, self.downs, 1), torch.split(ups, self.ups, 1), strict=True
        ):
            made[site.place] = LoRA(down.view(-1, rank, site.inputs), up.view(-1, site.outputs, rank))
        for site, squares, magnitude in zip(
            self.sites if self.dora else (), self._squares, torch.split(magnitudes, self.magnitudes, 1), strict=True
        ):
            lora = made[site.place]
            assert lora is not None  # noqa: S101 - made above
            made[site.place] = lora._replace(
                stretch=_stretch(site.weight, squares, lora.lora_a, lora.lora_b, magnitude).to(dtype)
            )
        return made

    def _scaled(self, ups: Tensor, scales: Tensor) -> Tensor:
        """All ups, each multiplied by its scale."""
        if self.ranks.spatial is None:
            return ups * scales[:, :1]
        parts = zip(self._scaled_runs, torch.split(ups, [width for _, width in self._scaled_runs], 1), strict=True)
        return torch.cat([part * scales[:, column : column + 1] for (column, _), part in parts], 1)

    def begin(self, seed: int, ranks: Ranks) -> Tensor:
        """A slot's vector [P] at step 0, on the CPU: peft's default initialisation, drawn from the job's seed.

        A is uniform in ±1/sqrt(in) (kaiming with a = sqrt 5), and B is zero, as in peft's
        LoraLayer.reset_lora_parameters. DoRA's magnitudes are the lengths of the rows of W.
        """
        drawn = {}
        for place, site in enumerate(self.sites):
            bound = site.inputs**-0.5
            chance = generator(seed, "start", place)
            rank = site.rank(ranks)
            down = torch.empty(rank, site.inputs).uniform_(-bound, bound, generator=chance)
            drawn[f"{site.name}.down"] = down.numpy()
            drawn[f"{site.name}.up"] = np.zeros((site.outputs, rank), np.float32)
        for site, squares in zip(self.sites, self._squares, strict=self.dora):
            drawn[f"{site.name}.magnitude"] = squares.sqrt().cpu().numpy()
        return self.fill(drawn)

    def fill(self, arrays: Mapping[str, Array]) -> Tensor:
        """A slot's vector [P] from arrays with the names of `read`; the rest is zero."""
        vector = torch.zeros(self.size)
        for name, view in self._views(vector).items():
            held = torch.from_numpy(np.array(arrays[name], np.float32))
            held = held.reshape(*held.shape[: view.ndim - 1], -1)
            view[tuple(slice(length) for length in held.shape)] = held
        return vector

    def read(self, vector: Tensor, ranks: Ranks) -> dict[str, Array]:
        """The arrays in a slot's vector, float32, without padding.

        `{module}.down` [rank, in], `{module}.up` [out, rank], and with DoRA `{module}.magnitude` [out]; for a
        convolution [rank, channels, height, width of the kernel] and [out, rank, 1, 1].
        """
        views = self._views(vector.detach().to("cpu", torch.float32, copy=True))
        found = {}
        for site in self.sites:
            rank = site.rank(ranks)
            down, up = views[f"{site.name}.down"][:rank], views[f"{site.name}.up"][:, :rank]
            if site.is_convolution:
                down, up = down.reshape(rank, -1, *site.kernel), up.reshape(*up.shape, 1, 1)
            found[f"{site.name}.down"] = down.contiguous().numpy()
            found[f"{site.name}.up"] = up.contiguous().numpy()
            if self.dora:
                found[f"{site.name}.magnitude"] = views[f"{site.name}.magnitude"].numpy()
        return found

    def _find_spans(self) -> list[Span]:
        kinds = [
            *[(False, site.is_text, width) for site, width in zip(self.sites, self.downs, strict=True)],
            *[(True, site.is_text, width) for site, width in zip(self.sites, self.ups, strict=True)],
            *[(True, site.is_text, width) for site, width in zip(self.sites, self.magnitudes, strict=False)],
        ]
        made: list[Span] = []
        for (is_up, is_text), run in groupby(kinds, key=lambda kind: kind[:2]):
            begin = made[-1].end if made else 0
            made.append(Span(begin, begin + sum(width for *_, width in run), is_up=is_up, is_text=is_text))
        return [*made[:-1], made[-1]._replace(end=self.size)]

    def _views(self, vector: Tensor) -> dict[str, Tensor]:
        found = {}
        edges = [0, *np.cumsum([*self.downs, *self.ups, *self.magnitudes]).tolist()]
        spans = [vector[begin:end] for begin, end in pairwise(edges)]
        count = len(self.sites)
        for place, site in enumerate(self.sites):
            rank = self._ranks[place]
            found[f"{site.name}.down"] = spans[place].view(rank, site.inputs)
            found[f"{site.name}.up"] = spans[count + place].view(site.outputs, rank)
            if self.dora:
                found[f"{site.name}.magnitude"] = spans[2 * count + place]
        return found


def _stretch(weight: Tensor, squares: Tensor, lora_a: Tensor, lora_b: Tensor, magnitude: Tensor) -> Tensor:
    """magnitude / |W + B A| - 1 for each row, [N, 1, out] (https://arxiv.org/abs/2402.09353).

    The gradient treats the lengths as constants, as in section 4.3. |W + B A|^2 = |W|^2 + 2 W (B A) + |B A|^2 row by
    row, without computing the sum W + B A: this costs as much as `rank` more samples.
    """
    with torch.no_grad():
        crossed = functional.linear(lora_a.flatten(0, 1), weight).view(*lora_a.shape[:2], -1).transpose(1, 2).float()
        low, high = lora_a.float(), lora_b.float()
        gram = torch.bmm(low, low.transpose(1, 2))
        grown = squares + (2 * crossed * high).sum(2) + (torch.bmm(high, gram) * high).sum(2)
        lengths = grown.clamp_(min=_SHORTEST).sqrt_()
    return (magnitude / lengths - 1).unsqueeze(1)


def matrices_of(weights: Mapping[str, Array]) -> dict[str, Matrices]:
    """Group arrays with the names of `Layout.read` by module: (down, up), for a DoRA (down, up, magnitude)."""
    made: dict[str, Matrices] = {}
    for module in sorted({name.rsplit(".", 1)[0] for name in weights}):
        pair = weights[f"{module}.down"], weights[f"{module}.up"]
        magnitude = weights.get(f"{module}.magnitude")
        made[module] = pair if magnitude is None else (*pair, magnitude)
    return made
