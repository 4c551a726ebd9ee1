"""The layers of a UNet, each with its backward pass by hand: for a frozen network, only gradients of inputs.

Every layer gives what it says and how to come back: from the gradient of what was said to that of the input. There is
no way back (None) where nothing in the layer or below learns: then nothing is kept either. What a step needs of a
module is looked up once, since asking a module costs as much as a small product. Pictures are [B, C, h, w] in
channels-last memory; words, and pixels in a row, are rows [B x T, C].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# From the gradient of what was said to that of the input; None where nothing below learns.
Back = Callable[[Any], Any]
# The same of a norm, which may be given the gradient of what goes past it, to be added.
Norm = Callable[..., Any]
aten: Any = torch.ops.aten

_INPUT_ONLY = [True, False, False]  # of a layer's input, weight and bias: which gradients are wanted


class Conv:
    """A convolution. Its way back is the transposed one, which wants no input kept."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.weight, self.bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        self.stride, self.kernel = layer.stride, layer.weight.shape[2:]
        self.padding: Any = layer.padding  # numbers; a name for it is not known here

    def __call__(self, x: Tensor, live: bool) -> tuple[Tensor, Back | None]:
        weight, stride, padding = self.weight, self.stride, self.padding
        said = torch.conv2d(x, weight, self.bias, stride, padding)
        if not live:
            return said, None
        # What a stride leaves over at the end of a side.
        rest = [(x.shape[2 + n] + 2 * int(padding[n]) - self.kernel[n]) % stride[n] for n in (0, 1)]
        return said, lambda g: torch.conv_transpose2d(g, weight, None, stride, padding, rest)


class GroupNorm:
    """Group normalisation (https://arxiv.org/abs/1803.08494), with SiLU behind it where asked."""

    def __init__(self, layer: nn.GroupNorm, *, silu: bool) -> None:
        self.weight, self.bias = layer.weight.detach(), layer.bias.detach()
        self.groups, self.epsilon, self.silu = layer.num_groups, layer.eps, silu
        # In float32 on a CPU: its channels-last kernel for bfloat16 takes three times as long, casts included.
        self.widens = self.weight.device.type == "cpu" and self.weight.dtype == torch.bfloat16
        self.wide = self.weight.float() if self.widens else self.weight

    def __call__(self, x: Tensor, live: bool, told: Tensor | None = None) -> tuple[Tensor, Norm | None]:
        """x [B, C, h, w]; what is `told` [B, C, 1, 1] is added to it first, in place."""
        if told is not None:
            x.add_(told)
        batch, channels, height, width = x.shape
        pixels = height * width
        normed, mean, spread = torch.native_group_norm(
            x, self.weight, self.bias, batch, channels, pixels, self.groups, self.epsilon
        )
        if not live:
            return functional.silu(normed, inplace=True) if self.silu else normed, None

        def back(g: Tensor, beside: Tensor | None = None) -> Tensor:
            if self.silu:
                g = aten.silu_backward(g, normed)
            sizes = (batch, channels, pixels, self.groups, _INPUT_ONLY)
            if self.widens:
                wide = (part.float() for part in (g, x, mean, spread))
                gradient: Tensor = aten.native_group_norm_backward(*wide, self.wide, *sizes)[0].to(x.dtype)
            else:
                gradient = aten.native_group_norm_backward(g, x, mean, spread, self.weight, *sizes)[0]
            return gradient if beside is None else gradient.add_(beside)

        return functional.silu(normed) if self.silu else normed, back


class LayerNorm:
    """Layer normalisation (https://arxiv.org/abs/1607.06450) of rows."""

    def __init__(self, layer: nn.LayerNorm) -> None:
        self.weight, self.bias = layer.weight.detach(), layer.bias.detach()
        self.shape, self.epsilon = list(layer.normalized_shape), layer.eps

    def __call__(self, x: Tensor, said: Tensor | None, live: bool) -> tuple[Tensor, Tensor, Norm | None]:
        """x [M, C] plus what a branch `said` of it, in that one's place; the same normed; and the way back to x."""
        if said is not None:
            x = said.add_(x)
        shape, weight, bias = self.shape, self.weight, self.bias
        normed, mean, spread = torch.native_layer_norm(x, shape, weight, bias, self.epsilon)
        if not live:
            return x, normed, None

        def back(g: Tensor, beside: Tensor | None = None) -> Tensor:
            gradient: Tensor
            gradient = aten.native_layer_norm_backward(g, x, shape, mean, spread, weight, bias, _INPUT_ONLY)[0]
            return gradient if beside is None else gradient.add_(beside)

        return x, normed, back


def gated(x: Tensor, live: bool) -> tuple[Tensor, Back | None]:
    """GEGLU (https://arxiv.org/abs/2002.05202): the first half of rows [M, 2 C] times the GELU of the second."""
    value, gate = x.chunk(2, -1)
    opened = functional.gelu(gate)
    said = value * opened
    if not live:
        return said, None
    return said, lambda g: torch.cat([g * opened, aten.gelu_backward(g * value, gate)], -1)


@dataclass(frozen=True)
class Kit:
    """What stands between products and convolutions: by torch's own operations here, compiled in `fused`."""

    group_norm: Callable[..., Callable[..., tuple[Tensor, Norm | None]]]
    layer_norm: Callable[[nn.LayerNorm], Callable[..., tuple[Tensor, Tensor, Norm | None]]]
    gated: Callable[[Tensor, bool], tuple[Tensor, Back | None]]


PLAIN = Kit(GroupNorm, LayerNorm, gated)


def resized(x: Tensor, size: tuple[int, int], live: bool) -> tuple[Tensor, Back | None]:
    """x at `size` (height, width), each pixel as the nearest of x's."""
    said = functional.interpolate(x, size=size, mode="nearest")
    if not live:
        return said, None
    shape = list(x.shape)
    return said, lambda g: aten.upsample_nearest2d_backward(g, list(size), shape, None, None)


def joined(backs: Sequence[Back | None]) -> Back | None:
    """The way back through layers that stand one after another."""
    ways = [back for back in reversed(backs) if back is not None]
    if not ways:
        return None

    def back(g: Tensor) -> Tensor:
        for way in ways:
            g = way(g)
        return g

    return back
