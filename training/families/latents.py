"""Pictures to latents through the VAE, and latents from what is kept of it. The same for every family."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from core.errors import ImageInvalid
from training.families.family import Base, Family
from training.ports import Example

TILE = 1024  # pixels a side that the VAE works on at once


def pixels(example: Example) -> Tensor:
    """A prepared picture as [1, 3, height, width] float32 in -1..1. Raises ImageInvalid for another one."""
    try:
        with Image.open(example.path, formats=["PNG"]) as picture:
            values = np.asarray(picture.convert("RGB"), np.float32)
            if example.is_mirrored:
                values = values[:, ::-1]
    except (OSError, ValueError, SyntaxError) as error:
        told = f"the prepared picture {example.sha256[:12]} cannot be read ({type(error).__name__})"
        raise ImageInvalid(told) from error
    if values.shape != (example.height, example.width, 3):
        raise ImageInvalid(
            f"the prepared picture {example.sha256[:12]} has {values.shape[1]} x {values.shape[0]} pixels, "
            f"{example.width} x {example.height} were told"
        )
    return torch.from_numpy(values / 127.5 - 1.0).permute(2, 0, 1).unsqueeze(0).contiguous()


def mask(example: Example, size: tuple[int, int]) -> Tensor:
    """How much each place of a picture's latents counts, [1, h, w] float32 on the CPU, 1 on average.

    From the alpha channel of the prepared picture, averaged over each latent's pixels. All ones for a picture without
    one, or in which nothing shows: that tells nothing of what matters.
    """
    with Image.open(example.path, formats=["PNG"]) as picture:
        if picture.mode != "RGBA":
            return torch.ones(1, *size)
        alpha = torch.from_numpy(np.asarray(picture.getchannel("A"), np.float32) / 255)
    shown = functional.interpolate(alpha[None, None], size, mode="area")[0]
    mean = shown.mean()
    return shown / mean if mean > 0 else torch.ones(1, *size)


def encode_pictures(base: Base, examples: Sequence[Example]) -> list[Tensor]:
    """Mean and log-variance of each picture's latents, [2C, h, w] float32 on the CPU. Pictures of one size."""
    vae = base.encoders["vae"]
    values = torch.cat([pixels(example) for example in examples])
    with torch.no_grad(), tiled(vae, values.shape[-2:]):
        moments: Tensor = vae.encode(values.to(base.device, vae.dtype)).latent_dist.parameters
    return list(moments.float().cpu())


def batches(examples: Sequence[Example], device: torch.device) -> Iterator[list[Example]]:
    """Pictures in the batches that they are encoded in: of one size, with no more pixels than the largest tile.

    One at a time on a CPU, which gains nothing from batches, and wherever the same bits are asked for: kernels choose
    by a batch's size in which order they sum, so a picture's bits would depend on the others.
    """
    is_exact = device.type != "cuda" or torch.are_deterministic_algorithms_enabled()
    by_size: dict[tuple[int, int], list[Example]] = {}
    for example in examples:
        by_size.setdefault((example.width, example.height), []).append(example)
    for (width, height), alike in by_size.items():
        count = 1 if is_exact else max(1, TILE**2 // (width * height))
        yield from (alike[place : place + count] for place in range(0, len(alike), count))


@contextmanager
def tiled(vae: Any, size: Sequence[int]) -> Iterator[None]:
    """Inside, a picture of more than 1024 pixels a side goes through the VAE in tiles, as diffusers lays and blends
    them: memory grows with the tile.
    """
    if max(size) <= TILE:
        yield
        return
    vae.tile_sample_min_size = TILE
    vae.tile_latent_min_size = TILE // 2 ** (len(vae.config.block_out_channels) - 1)
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()


def decoded(family: Family, base: Base, drawn: Sequence[Tensor]) -> list[bytes]:
    """Latents [C, h, w] as they are trained on, each decoded to a PNG. Wakes the VAE."""
    pictures = []
    with base.encoders.awake("vae"), torch.no_grad():
        vae = base.encoders["vae"]
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        for latents in drawn:
            scaled = family.unscale(base, latents.unsqueeze(0).to(base.device))
            with tiled(vae, [factor * side for side in latents.shape[-2:]]):
                pictures.append(vae.decode(scaled.to(vae.dtype), return_dict=False)[0][0].float().cpu())
    return [_png(picture) for picture in pictures]


def _png(picture: Tensor) -> bytes:
    """A picture [3, height, width] in -1..1 as a PNG."""
    values = ((picture + 1) * 127.5).nan_to_num(0.0).clamp(0, 255).round().byte()
    written = io.BytesIO()
    Image.fromarray(values.permute(1, 2, 0).contiguous().numpy()).save(written, "PNG")
    return written.getvalue()


def sample(moments: Tensor, generator: torch.Generator) -> Tensor:
    """One draw from each latent distribution: moments [B, 2C, h, w] to latents [B, C, h, w], not yet scaled."""
    mean, log_variance = moments.chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator)
    return mean + (0.5 * log_variance.clamp(-30.0, 20.0)).exp() * noise
