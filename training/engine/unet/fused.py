"""What stands between a UNet's products and convolutions as pure functions of tensors, for a compiler to fuse.

The same arithmetic as in `layers`, written out: each function becomes one or a few kernels, where torch's own
operations are a kernel each, and on CUDA take pictures out of channels-last memory for every group normalisation. What
is cheap to reckon again is not kept for the way back. Sums are float32, whatever the base is.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.engine.unet.layers import Back, Kit, Norm

# Makes of a function of tensors one that does the same, compiled: `compiler.Compiler`.
Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def kit(compiler: Compile) -> Kit:
    """The layers of `layers`, by functions that `compiler` compiles."""
    return Kit(partial(GroupNorm, compiler), partial(LayerNorm, compiler), gate(compiler))


class GroupNorm:
    """As `layers.GroupNorm`."""

    def __init__(self, compiler: Compile, layer: nn.GroupNorm, *, silu: bool) -> None:
        self.weight, self.bias = layer.weight.detach(), layer.bias.detach()
        self.groups, self.epsilon, self.silu = layer.num_groups, layer.eps, silu
        self.forward, self.back = compiler(group_norm), compiler(group_norm_back)

    def __call__(self, x: Tensor, live: bool, told: Tensor | None = None) -> tuple[Tensor, Norm | None]:
        weight, bias, silu = self.weight, self.bias, self.silu
        said, mean, spread = self.forward(x, told, weight, bias, self.groups, self.epsilon, silu)
        if not live:
            return said, None
        return said, lambda g, beside=None: self.back(g, beside, x, told, mean, spread, weight, bias, silu)


class LayerNorm:
    """As `layers.LayerNorm`."""

    def __init__(self, compiler: Compile, layer: nn.LayerNorm) -> None:
        self.weight, self.bias, self.epsilon = layer.weight.detach(), layer.bias.detach(), layer.eps
        self.forward, self.back = compiler(layer_norm), compiler(layer_norm_back)

    def __call__(self, x: Tensor, said: Tensor | None, live: bool) -> tuple[Tensor, Tensor, Norm | None]:
        added, normed, mean, spread = self.forward(x, said, self.weight, self.bias, self.epsilon)
        x = x if added is None else added
        if not live:
            return x, normed, None
        return x, normed, lambda g, beside=None: self.back(g, beside, x, mean, spread, self.weight)


def gate(compiler: Compile) -> Callable[[Tensor, bool], tuple[Tensor, Back | None]]:
    """As `layers.gated`."""
    forward, back = compiler(geglu), compiler(geglu_back)

    def gated(x: Tensor, live: bool) -> tuple[Tensor, Back | None]:
        return forward(x), (lambda g: back(g, x)) if live else None

    return gated


# ---- functions of tensors ------------------------------------------------------------------------------------------


def group_norm(
    x: Tensor, told: Tensor | None, weight: Tensor, bias: Tensor, groups: int, epsilon: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x + told [B, C, h, w] normalised by groups, its means and inverse deviations [B, 1, groups, 1]."""
    seen = _grouped(x if told is None else x + told, groups)
    variance, mean = torch.var_mean(seen, (1, 3), correction=0, keepdim=True)
    spread = torch.rsqrt(variance + epsilon)
    said = (seen - mean) * spread * _of(groups, weight) + _of(groups, bias)
    return _picture(functional.silu(said) if silu else said, x), mean, spread


def group_norm_back(
    g: Tensor, beside: Tensor | None, x: Tensor, told: Tensor | None, mean: Tensor, spread: Tensor, weight: Tensor,
    bias: Tensor, silu: bool,
) -> Tensor:  # fmt: skip
    """From the gradient of what was said to that of x, plus `beside`."""
    groups = mean.shape[2]
    normed = (_grouped(x if told is None else x + told, groups) - mean) * spread
    found = _grouped(g, groups)
    if silu:
        said = normed * _of(groups, weight) + _of(groups, bias)
        open_ = torch.sigmoid(said)
        found = found * open_ * (1 + said * (1 - open_))
    made = _picture(_unnormed(found * _of(groups, weight), normed, spread, (1, 3)), x)
    return made if beside is None else made + beside


def layer_norm(
    x: Tensor, said: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """x + said [M, C] (None where nothing is added), that normalised, its means and inverse deviations [M, 1]."""
    added = None if said is None else x + said
    seen = (x if added is None else added).float()
    variance, mean = torch.var_mean(seen, 1, correction=0, keepdim=True)
    spread = torch.rsqrt(variance + epsilon)
    normed = (seen - mean) * spread * weight.float() + bias.float()
    return added, normed.to(x.dtype), mean, spread


def layer_norm_back(
    g: Tensor, beside: Tensor | None, x: Tensor, mean: Tensor, spread: Tensor, weight: Tensor
) -> Tensor:
    """From the gradient of what was normalised to that of x, plus `beside`."""
    made = _unnormed(g.float() * weight.float(), (x.float() - mean) * spread, spread, (1,)).to(x.dtype)
    return made if beside is None else made + beside


def geglu(x: Tensor) -> Tensor:
    """The first half of rows [M, 2 C] times the GELU of the second."""
    value, opened = x.chunk(2, -1)
    return value * functional.gelu(opened)


def geglu_back(g: Tensor, x: Tensor) -> Tensor:
    """From the gradient of that [M, C] to that of x; of GELU it is Phi(x) + x phi(x)."""
    value, opened = x.float().chunk(2, -1)
    wide = g.float()
    share = 0.5 * (1 + torch.erf(opened * math.sqrt(0.5)))
    slope = share + opened * torch.exp(-0.5 * opened * opened) / math.sqrt(2 * math.pi)
    return torch.cat([wide * opened * share, wide * value * slope], -1).to(x.dtype)


def _unnormed(g: Tensor, normed: Tensor, spread: Tensor, over: tuple[int, ...]) -> Tensor:
    """The gradient of what was normalised over some dimensions, from that of `normed`."""
    return (g - g.mean(over, keepdim=True) - normed * (g * normed).mean(over, keepdim=True)) * spread


def _grouped(x: Tensor, groups: int) -> Tensor:
    """[B, C, h, w] in channels-last memory to float32 [B, h x w, groups, C / groups], in the same order."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height * width, groups, channels // groups).float()


def _of(groups: int, values: Tensor) -> Tensor:
    """A norm's weights or biases [C] beside that."""
    return values.float().view(groups, -1)


def _picture(grouped: Tensor, like: Tensor) -> Tensor:
    """Back to the shape and dtype of `like`, in channels-last memory."""
    batch, channels, height, width = like.shape
    made: Any = grouped.to(like.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)
    return made  # type: ignore[no-any-return]
