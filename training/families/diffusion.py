"""Noise schedule, loss target and sampler of the families with discrete times: sd15 and sdxl.

DDPM, https://arxiv.org/abs/2006.11239 (equations 4 and 14): x_t = sqrt(a_t) x + sqrt(1 - a_t) n, with a_t the running
product of 1 - beta. The network predicts n (epsilon), or v = sqrt(a_t) n - sqrt(1 - a_t) x
(https://arxiv.org/abs/2202.00512, appendix D).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from core.errors import BaseModelUnavailable
from training.families.family import Base, Draw, Where
from training.families.latents import sample, vae_decode
from training.families.weights.parts import load_part, vae_number
from training.options import MIN_SNR_GAMMA

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class DiscreteSchedule:
    """The noise schedule, and the scale of latents."""

    alphas: Tensor  # the running products a_t, [T] float32, on the device
    scaling: float  # latents of the VAE times this are the UNet's input
    prediction: str  # epsilon or v_prediction

    @cached_property
    def on_host(self) -> Tensor:
        """`alphas` in float64 on the CPU, to compute loss weights without waiting for the device."""
        return self.alphas.cpu().double()


def load_schedule(where: Where) -> DiscreteSchedule:
    """Load the schedule of a base model. Raises BaseModelUnavailable if it cannot be trained on."""
    scheduler = load_part(DDPMScheduler, where.folder, "scheduler")
    prediction = str(scheduler.config.prediction_type)
    if prediction not in PREDICTIONS:
        raise BaseModelUnavailable(
            f"the base model in {where.folder} predicts {prediction!r}; only models that predict "
            f"{' or '.join(PREDICTIONS)} can be trained"
        )
    alphas = scheduler.alphas_cumprod.float().to(where.device)
    return DiscreteSchedule(alphas, vae_number(where.folder, "scaling_factor"), prediction)


def draw(base: Base, moments: Tensor, generator: torch.Generator) -> Draw:
    """Draw latents from moments [B, 2C, h, w], scaled for the UNet; normal noise; times uniform in 0..T-1."""
    schedule: DiscreteSchedule = base.schedule
    latents = sample(moments, generator) * schedule.scaling
    noise = torch.randn(latents.shape, generator=generator)
    times = torch.randint(0, len(schedule.alphas), (len(latents),), generator=generator)
    return Draw.plain(latents, noise, times)


def mix(base: Base, made: Draw) -> Tensor:
    """x_t of each sample, [B, C, h, w] (equation 4 of DDPM)."""
    schedule: DiscreteSchedule = base.schedule
    a = schedule.alphas[made.times].view(-1, 1, 1, 1)
    return a.sqrt() * made.latents + (1 - a).sqrt() * made.noise


def target(base: Base, made: Draw) -> Tensor:
    """The noise or the velocity of each sample, [B, C, h, w]."""
    schedule: DiscreteSchedule = base.schedule
    if schedule.prediction == "epsilon":
        return made.noise
    a = schedule.alphas[made.times].view(-1, 1, 1, 1)
    return a.sqrt() * made.noise - (1 - a).sqrt() * made.latents


# ---- loss weights ------------------------------------------------------------------------------------------------


def weigh(base: Base, times: Tensor, weighting: str) -> Tensor:
    """The loss weights of samples at these times, [B] float32, with SNR = a / (1 - a).

    min_snr (https://arxiv.org/abs/2303.09556) weights the error of the clean latents by min(SNR, 5). The error of
    epsilon is SNR times that of the latents, and the error of v is SNR + 1 times it: hence min(SNR, 5) / SNR and
    min(SNR, 5) / (SNR + 1). debiased (https://arxiv.org/abs/2310.08442) weights the error of epsilon by 1 / sqrt(SNR),
    which for v is sqrt(SNR) / (SNR + 1).
    """
    schedule: DiscreteSchedule = base.schedule
    a = schedule.on_host[times].clamp(min=1e-6)  # with zero terminal SNR, the last weight of epsilon is unbounded
    is_epsilon = schedule.prediction == "epsilon"
    if weighting == "min_snr":
        found = (
            (MIN_SNR_GAMMA * (1 - a) / a).clamp(max=1.0) if is_epsilon else torch.minimum(a, MIN_SNR_GAMMA * (1 - a))
        )
    elif weighting == "debiased":
        found = ((1 - a) / a).sqrt() if is_epsilon else (a * (1 - a)).sqrt()
    else:
        found = torch.ones_like(a)
    return found.float()


# ---- drawing -----------------------------------------------------------------------------------------------------


def levels(base: Base, count: int, _size: tuple[int, int]) -> Tensor:
    """`count` times from T - 1 down, evenly spaced ("trailing" in https://arxiv.org/abs/2305.08891, table 2)."""
    last = len(base.schedule.alphas)
    return torch.tensor([round(last * (count - place) / count) - 1 for place in range(count)])


def denoise(base: Base, noisy: Tensor, predicted: Tensor, now: Tensor, then: Tensor | None) -> Tensor:
    """One step of DDIM without noise (https://arxiv.org/abs/2010.02502, equation 12), all [B, C, h, w]."""
    schedule: DiscreteSchedule = base.schedule
    a, predicted = schedule.alphas[now], predicted.float()
    if schedule.prediction == "epsilon":
        clean, noise = (noisy - (1 - a).sqrt() * predicted) / a.sqrt(), predicted
    else:
        clean = a.sqrt() * noisy - (1 - a).sqrt() * predicted
        noise = a.sqrt() * predicted + (1 - a).sqrt() * noisy
    if then is None:
        return clean
    b = schedule.alphas[then]
    return b.sqrt() * clean + (1 - b).sqrt() * noise


def decode(base: Base, latents: Tensor) -> Tensor:
    """Pictures [B, 3, height, width] from scaled latents [B, C, h, w]."""
    schedule: DiscreteSchedule = base.schedule
    return vae_decode(base, latents / schedule.scaling)
