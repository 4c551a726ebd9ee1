"""Pictures to latents through the VAE, and latents from what is kept of it. The same for every family."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from core.errors import ImageInvalid
from training.families.family import Base, Family
from training.ports import Example


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


def encode_picture(base: Base, example: Example) -> Tensor:
    """Mean and log-variance of the picture's latents, [2C, h, w] float32 on the CPU.

    One picture at a time, in float32 on every device: it is done once, a VAE overflows in float16 (sdxl's does), and
    the result must not depend on which pictures are beside it.
    """
    vae = base.encoders["vae"]
    with torch.no_grad():
        moments: Tensor = vae.encode(pixels(example).to(vae.device, vae.dtype)).latent_dist.parameters
    return moments[0].float().cpu()


def decoded(family: Family, base: Base, latents: Tensor) -> bytes:
    """Latents [C, h, w] as they are trained on, decoded to a PNG."""
    vae = base.encoders["vae"]
    with torch.no_grad():
        scaled = family.unscale(base, latents.unsqueeze(0).to(base.device))
        shown = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
    values = ((shown[0].float().cpu() + 1) * 127.5).nan_to_num(0.0).clamp(0, 255).round().byte()
    written = io.BytesIO()
    Image.fromarray(values.permute(1, 2, 0).contiguous().numpy()).save(written, "PNG")
    return written.getvalue()


def sample(moments: Tensor, generator: torch.Generator) -> Tensor:
    """One draw from each latent distribution: moments [B, 2C, h, w] to latents [B, C, h, w], not yet scaled."""
    mean, log_variance = moments.chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator)
    return mean + (0.5 * log_variance.clamp(-30.0, 20.0)).exp() * noise
