"""Pictures in the VAEs of video models, as one frame: encoded to normalised latents, and decoded."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from training.families.family import Base
from training.families.latents import TILE, pixels
from training.ports import Example


def encode_pictures(base: Base, examples: Sequence[Example]) -> list[Tensor]:
    """The moments of each picture's normalised latents, [2C, h, w] float32 on the CPU. All pictures have one size.

    A VAE with a fourth channel is given pictures that are opaque everywhere.
    """
    vae = base.encoders["vae"]
    values = torch.cat([pixels(example) for example in examples]).unsqueeze(2)  # one frame
    if getattr(vae.config, "in_channels", 3) == 4:
        values = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
    with torch.no_grad(), _tiled(vae, values.shape[-2:]):
        moments = vae.encode(values.to(base.device, vae.dtype)).latent_dist.parameters.squeeze(2).float().cpu()
    mean, log_variance = moments.chunk(2, dim=1)
    center, deviation = _statistics(vae, mean)
    return list(torch.cat([(mean - center) / deviation, log_variance - 2 * deviation.log()], dim=1))


def decode(base: Base, latents: Tensor) -> Tensor:
    """Pictures [B, 3, height, width] from normalised latents [B, C, h, w], without a fourth channel."""
    vae = base.encoders["vae"]
    center, deviation = _statistics(vae, latents)
    with _tiled(vae, [vae.spatial_compression_ratio * side for side in latents.shape[-2:]]):
        made: Tensor = vae.decode((latents * deviation + center).unsqueeze(2).to(vae.dtype), return_dict=False)[0]
    return made.squeeze(2)[:, :3]


def _statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of the VAE's latents, [1, C, 1, 1] each."""
    found = (torch.tensor(getattr(vae.config, name)) for name in ("latents_mean", "latents_std"))
    center, deviation = (values.view(1, -1, 1, 1).to(latents) for values in found)
    return center, deviation


@contextmanager
def _tiled(vae: Any, size: Sequence[int]) -> Iterator[None]:
    """Inside, the VAE processes pictures with a side above 1024 pixels in overlapping tiles."""
    if max(size) <= TILE:
        yield
        return
    vae.enable_tiling(TILE, TILE, TILE * 7 // 8, TILE * 7 // 8)
    try:
        yield
    finally:
        vae.disable_tiling()
