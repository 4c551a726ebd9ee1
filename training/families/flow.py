"""Flow matching (https://arxiv.org/abs/2210.02747): x_s = (1 - s) x + s n, and the target is n - x.

s is 0 for a picture and 1 for noise. Times may be shifted towards noise (https://arxiv.org/abs/2403.03206, section
5.3.2). For all families that are trained so.
"""

import torch
from torch import Tensor

from training.families.family import Base, Draw
from training.options import MIN_SNR_GAMMA


def shifted(uniform: Tensor, shift: float) -> Tensor:
    """s = f u / (1 + (f - 1) u): 0 and 1 stay, and values between move towards noise if the shift f is above 1."""
    return shift * uniform / (1 + (shift - 1) * uniform)


def logit_normal(count: int, generator: torch.Generator, shift: float) -> Tensor:
    """`count` times: the sigmoid of a normal draw (https://arxiv.org/abs/2403.03206, section 3.1), then shifted."""
    return shifted(torch.randn(count, generator=generator).sigmoid(), shift)


def in_bfloat16(times: Tensor) -> Tensor:
    """Times that bfloat16 holds, for a network that multiplies them by 1,000 in the precision of the base.

    So that it is told the noise that it sees: 0.8466 would become 0.848.
    """
    return (1000 * times).bfloat16().float() / 1000


def on_line(count: int, line: tuple[int, float, int, float]) -> float:
    """The value at `count` of the line through two points (x, y, x, y)."""
    start, low, end, high = line
    return low + (high - low) * (count - start) / (end - start)


def mix(base: Base, made: Draw) -> Tensor:
    """x_s of each sample, [B, C, h, w]."""
    s = made.times.view(-1, 1, 1, 1)
    return (1 - s) * made.latents + s * made.noise


def target(base: Base, made: Draw) -> Tensor:
    """n - x of each sample, [B, C, h, w]."""
    return made.noise - made.latents


def weigh(base: Base, times: Tensor, weighting: str) -> Tensor:
    """The loss weights of samples at these times, [B] float32; as in diffusion.py, with SNR = ((1 - s) / s)^2.

    The squared error of n - x is that of the clean latents divided by s^2, and that of the noise divided by (1 - s)^2.
    So min_snr is min((1 - s)^2, 5 s^2), and debiased is s (1 - s).
    """
    s = times.cpu().double()
    if weighting == "min_snr":
        return torch.minimum((1 - s) ** 2, MIN_SNR_GAMMA * s**2).float()
    return (s * (1 - s)).float() if weighting == "debiased" else torch.ones(len(s))


def denoise(base: Base, mixed: Tensor, predicted: Tensor, now: Tensor, then: Tensor | None) -> Tensor:
    """One Euler step along the flow, all [B, C, h, w]."""
    return mixed + ((0.0 if then is None else then) - now) * predicted.float()
