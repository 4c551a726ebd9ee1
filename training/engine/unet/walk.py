"""A walk through the levels of a UNet, down and up again, and the same way back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from training.engine.unet.blocks import Residual, Transformer
from training.engine.unet.layers import Back, Conv, resized
from training.engine.unet.linear import Pass

if TYPE_CHECKING:
    from training.engine.unet.network import Network

_Step = Callable[[Tensor, bool], tuple[Tensor, Back | None]]


@dataclass
class Level:
    """One block of a UNet: residual blocks, the transformers behind them, the convolution that leaves the level."""

    residuals: list[Residual]
    transformers: list[Transformer | None]  # none of a level without them; in the middle one fewer than residuals
    sampler: Conv | None


class Walk:
    """Where one pass is, what it left for the way up, and how to come back."""

    def __init__(self, network: "Network", now: Pass, told: list[Tensor], context: Tensor) -> None:
        self.network, self.now, self.told = network, now, told
        self.context = context.reshape(-1, context.shape[-1])
        self.x: Any = None
        self.live = False  # whether anything that we passed learns
        self._left: list[tuple[Tensor, bool]] = []  # for the way up
        self._ways: list[Callable[[], None]] = []  # back, the first first
        self._g: Any = None  # on the way back: the gradient of where we are
        self._waiting: list[Tensor] = []  # and those of what was left

    def through(self, sample: Tensor) -> Tensor:
        """What the network says of `sample` [B, C, h, w]."""
        network = self.network
        self.x, _ = network.enter(sample.contiguous(memory_format=torch.channels_last), False)
        self._leave()
        for level in network.downs:
            self._down(level)
        self._middle(network.middle)
        for level in network.ups:
            self._up(level)
        self._do(network.norm)
        self._do(network.leave)
        said: Tensor = self.x
        self.x = None
        return said

    def back(self, g: Tensor) -> None:
        """All the way back, from the gradient of what was said; gradients are gathered in the pass."""
        self._g = g.contiguous(memory_format=torch.channels_last)
        while self._ways:  # what a step kept goes with it
            self._ways.pop()()

    # ---- levels ----

    def _down(self, level: Level) -> None:
        for place, residual in enumerate(level.residuals):
            self._residual(residual)
            if level.transformers:
                self._transformer(level.transformers[place])
            self._leave()
        if level.sampler is not None:
            self._do(level.sampler)
            self._leave()

    def _middle(self, level: Level) -> None:
        self._residual(level.residuals[0])
        for transformer, residual in zip(level.transformers, level.residuals[1:], strict=True):
            self._transformer(transformer)
            self._residual(residual)

    def _up(self, level: Level) -> None:
        for place, residual in enumerate(level.residuals):
            self._meet()
            self._residual(residual)
            if level.transformers:
                self._transformer(level.transformers[place])
        if level.sampler is not None:
            _, _, height, width = self._left[-1][0].shape
            self._do(lambda x, live: resized(x, (height, width), live))
            self._do(level.sampler)

    # ---- steps ----

    def _residual(self, residual: Residual) -> None:
        told = self.told[residual.place]
        self._do(lambda x, live: residual(x, told, live), is_block=True)

    def _transformer(self, transformer: Transformer | None) -> None:
        if transformer is not None:
            self._do(lambda x, live: transformer(self.now, x, self.context, live), is_block=True)

    def _do(self, step: _Step, *, is_block: bool = False) -> None:
        x, live = self.x, self.live
        self.x, way = step(x, live)
        if way is None:
            return
        self.live = True
        if is_block and self.now.recompute:
            way = lambda g: step(x, live)[1](g)  # type: ignore[misc]  # noqa: E731
        known = way

        def back() -> None:
            self._g = known(self._g)

        self._ways.append(back)

    def _leave(self) -> None:
        """Leave what is said here for the way up."""
        self._left.append((self.x, self.live))
        if self.live:
            self._ways.append(self._gather)

    def _gather(self) -> None:
        self._g = self._waiting.pop().add_(self._g)

    def _meet(self) -> None:
        """Go on with what was left here beside what is."""
        left, left_live = self._left.pop()
        live, width = self.live, self.x.shape[1]
        self.x = torch.cat([self.x, left], 1)
        self.live = live or left_live
        if not self.live:
            return

        def back() -> None:
            g = self._g
            if left_live:
                self._waiting.append(g[:, width:].contiguous(memory_format=torch.channels_last))
            self._g = g[:, :width].contiguous(memory_format=torch.channels_last) if live else None

        self._ways.append(back)
