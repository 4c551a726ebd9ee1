"""The objective of the families that predict noise or velocity over 1,000 discrete times: sd15 and sdxl.

DDPM, https://arxiv.org/abs/2006.11239 (equations 4 and 14): x_t = sqrt(a_t) x + sqrt(1 - a_t) n, with a_t the running
product of 1 - beta. The network predicts n (epsilon), or v = sqrt(a_t) n - sqrt(1 - a_t) x
(https://arxiv.org/abs/2202.00512, appendix D).
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from core.errors import BaseModelUnavailable
from training.families.family import Base, Draw, Where
from training.families.latents import sample
from training.families.parts import load_part

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class DiscreteSchedule:
    """How noise is mixed in: running products a_t, [T] float32, and what latents are multiplied with for the UNet."""

    alphas: Tensor
    scaling: float
    prediction: str


def load_schedule(where: Where, vae: Any) -> DiscreteSchedule:
    """The schedule in the base model's folder. Raises BaseModelUnavailable for one that we cannot train on."""
    scheduler = load_part(DDPMScheduler, where.folder, "scheduler")
    prediction = str(scheduler.config.prediction_type)
    if prediction not in PREDICTIONS:
        raise BaseModelUnavailable(
            f"the base model in {where.folder} predicts {prediction!r}; it can be trained if it predicts "
            f"{' or '.join(PREDICTIONS)}"
        )
    alphas = scheduler.alphas_cumprod.float().to(where.device)
    return DiscreteSchedule(alphas, float(vae.config.scaling_factor), prediction)


def draw(base: Base, moments: Tensor, generator: torch.Generator) -> Draw:
    """Latents from their moments [B, 2C, h, w], scaled as the UNet expects; normal noise; times uniform in 0..T-1."""
    schedule: DiscreteSchedule = base.schedule
    latents = sample(moments, generator) * schedule.scaling
    noise = torch.randn(latents.shape, generator=generator)
    times = torch.randint(0, len(schedule.alphas), (len(latents),), generator=generator)
    return Draw(latents, noise, times)


def noisy(schedule: DiscreteSchedule, made: Draw) -> Tensor:
    """x_t of every sample, [B, C, h, w]."""
    a = schedule.alphas[made.times].view(-1, 1, 1, 1)
    return a.sqrt() * made.latents + (1 - a).sqrt() * made.noise


def target(schedule: DiscreteSchedule, made: Draw) -> Tensor:
    """What the network should say about every sample, [B, C, h, w]."""
    if schedule.prediction == "epsilon":
        return made.noise
    a = schedule.alphas[made.times].view(-1, 1, 1, 1)
    return a.sqrt() * made.noise - (1 - a).sqrt() * made.latents


def per_sample_error(said: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of every sample, [B] float32."""
    return (said.float() - wanted.float()).pow(2).flatten(1).mean(1)
