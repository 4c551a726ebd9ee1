"""Encode pictures to moments of their latents, draw latents from moments, and decode latents. For all families."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from core.errors import ImageInvalid
from training.families.family import Base, FamilyCode
from training.ports import Example

TILE = 1024  # side in pixels of the tiles that the VAE processes


class _Scaling(Protocol):
    """What a noise schedule says of latents that are scaled: (z - offset) * scaling."""

    @property
    def scaling(self) -> float: ...

    @property
    def offset(self) -> float: ...


def pixels(example: Example) -> Tensor:
    """A prepared picture as [1, 3, height, width] float32 in -1..1.

    Raises ImageInvalid if it cannot be read or has another size than the example.
    """
    try:
        with Image.open(example.path, formats=["PNG"]) as picture:
            values = np.asarray(_fitted(picture.convert("RGB"), example), np.float32)
            if example.is_mirrored:
                values = values[:, ::-1]
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageInvalid(f"{_label(example)} cannot be read ({type(error).__name__})") from error
    if values.shape != (example.height, example.width, 3):
        raise ImageInvalid(
            f"{_label(example)} has {values.shape[1]} x {values.shape[0]} pixels; expected "
            f"{example.width} x {example.height}"
        )
    return torch.from_numpy(values / 127.5 - 1.0).permute(2, 0, 1).unsqueeze(0).contiguous()


def _fitted(picture: Image.Image, example: Example) -> Image.Image:
    """A prepared picture in the size that it is trained at: its middle, scaled down."""
    if example.prepared is None or picture.size != example.prepared:
        return picture
    width, height = picture.size
    scale = min(width / example.width, height / example.height)
    left, top = (width - example.width * scale) / 2, (height - example.height * scale) / 2
    box = (left, top, left + example.width * scale, top + example.height * scale)
    return picture.resize((example.width, example.height), Image.Resampling.LANCZOS, box)


def _label(example: Example) -> str:
    return f"{example.label or 'the picture'}: its prepared file {example.sha256[:12]}"


def mask(example: Example, size: tuple[int, int]) -> Tensor:
    """The loss weight of each place of a picture's latents, [1, h, w] float32 on the CPU, 1 on average.

    From the alpha channel of the prepared picture, averaged over the pixels of each place. All ones for a picture
    without alpha channel, or with a fully transparent one.
    """
    with Image.open(example.path, formats=["PNG"]) as picture:
        if picture.mode != "RGBA":
            return torch.ones(1, *size)
        alpha = torch.from_numpy(np.asarray(_fitted(picture.getchannel("A"), example), np.float32) / 255)
    shown = functional.interpolate(alpha[None, None], size, mode="area")[0]
    mean = shown.mean()
    return shown / mean if mean > 0 else torch.ones(1, *size)


def encode_pictures(base: Base, examples: Sequence[Example]) -> list[Tensor]:
    """Mean and log-variance of each picture's latents, [2C, h, w] float32 on the CPU. All pictures have one size."""
    vae = base.encoders["vae"]
    values = torch.cat([pixels(example) for example in examples])
    with torch.no_grad(), tiled(vae, values.shape[-2:]):
        moments: Tensor = vae.encode(values.to(base.device, vae.dtype)).latent_dist.parameters
    return list(moments.float().cpu())


def batches(examples: Sequence[Example], device: torch.device) -> Iterator[list[Example]]:
    """Divide pictures into batches to encode: each of one size, with at most the pixels of one tile.

    Batches have one picture on a CPU, where larger ones are not faster, and in deterministic mode: kernels choose their
    order of summation by the batch size, so a picture's bits would depend on the others.
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
    """Inside, the VAE processes pictures with a side above 1024 pixels in diffusers' overlapping tiles: saves memory.

    size: height and width of the pictures, in pixels.
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


def decode_scaled(base: Base, latents: Tensor) -> Tensor:
    """Pictures [B, 3, height, width] from latents [B, C, h, w] that `sample_scaled` scaled."""
    schedule: _Scaling = base.schedule
    return vae_decode(base, latents / schedule.scaling + schedule.offset)


def vae_decode(base: Base, latents: Tensor) -> Tensor:
    """Pictures [B, 3, height, width] from latents [B, C, h, w] of diffusers' AutoencoderKL."""
    vae = base.encoders["vae"]
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    with tiled(vae, [factor * side for side in latents.shape[-2:]]):
        made: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    return made


def decoded(family: FamilyCode, base: Base, drawn: Sequence[Tensor]) -> list[bytes]:
    """Decode scaled latents [C, h, w], each to a PNG. Wakes the VAE."""
    with base.encoders.awake("vae"), torch.no_grad():
        pictures = [family.decode(base, latents.unsqueeze(0).to(base.device))[0].float().cpu() for latents in drawn]
    return [_png(picture) for picture in pictures]


def _png(picture: Tensor) -> bytes:
    """A picture [3, height, width] in -1..1 as a PNG."""
    values = ((picture + 1) * 127.5).nan_to_num(0.0).clamp(0, 255).round().byte()
    written = io.BytesIO()
    Image.fromarray(values.permute(1, 2, 0).contiguous().numpy()).save(written, "PNG")
    return written.getvalue()


def sample(moments: Tensor, generator: torch.Generator) -> Tensor:
    """One draw from each latent distribution: moments [B, 2C, h, w] to unscaled latents [B, C, h, w]."""
    mean, log_variance = moments.chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator)
    return mean + (0.5 * log_variance.clamp(-30.0, 20.0)).exp() * noise


def sample_scaled(base: Base, moments: Tensor, generator: torch.Generator) -> Tensor:
    """As `sample`, but scaled as the base model's denoiser takes them: (z - offset) * scaling."""
    schedule: _Scaling = base.schedule
    return (sample(moments, generator) - schedule.offset) * schedule.scaling
