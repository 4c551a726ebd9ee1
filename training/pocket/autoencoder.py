"""First lesson: the autoencoder, which turns 64 x 64 pixels into 16 x 16 x 4 latents and back."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.pocket.lesson import Lesson, compose_batch, draw_batch
from training.pocket.networks import SCALING, make_vae

BATCH = 8
_NOISE = 0.1  # on latents while learning: what the UNet draws is never exact, and must decode well all the same
_SEED = 101


def learn(folder: Path, steps: int, device: torch.device) -> Any:
    """Train it, or go on; gives the autoencoder with its latents normalised."""
    torch.manual_seed(_SEED)
    vae, colours = make_vae().to(device), nn.Conv2d(4, 3, 1).to(device)
    lesson = Lesson("vae", folder, {"vae": vae, "colours": colours}, peak=2e-3, decay=1e-4)
    lesson.resume()

    def step_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(_SEED * 1_000_003 + step)
        pictures = vary(draw_batch(compose_batch(_SEED, step, BATCH)), generator).to(device)
        mean = vae.encode(pictures).latent_dist.mean
        noise = torch.randn(mean.shape, generator=generator).to(device)
        again = vae.decode(mean + _NOISE * noise).sample
        # Left alone, some channels die early, drowned by the noise, and a colour with them. So they are held at unit
        # deviation and apart from one another, and the mean colour of each square must be told from them at once.
        told = (colours(mean) - nn.functional.avg_pool2d(pictures, 4)).abs().mean()
        loss: Tensor = difference(again, pictures) + 0.1 * _entanglement(mean) + told
        return loss

    lesson.learn(steps, step_of)
    normalise(vae, draw_batch(compose_batch(_SEED, -1, 256)).to(device))
    return vae.eval().requires_grad_(False)


def polish(folder: Path, steps: int, vae: Any, device: torch.device) -> Any:
    """Train the decoder alone, on latents that do not move any more; the UNet can learn at the same time."""
    learnt = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    lesson = Lesson("decoder", folder, {"decoder": learnt}, peak=1.5e-3, decay=1e-4)
    lesson.resume()

    def step_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(_SEED * 2_000_003 + step)
        pictures = vary(draw_batch(compose_batch(_SEED + 1, step, BATCH)), generator).to(device)
        with torch.no_grad():
            mean = vae.encode(pictures).latent_dist.mean
        noise = torch.randn(mean.shape, generator=generator).to(device)
        return difference(vae.decode(mean + _NOISE / SCALING * noise).sample, pictures)

    lesson.learn(steps, step_of)
    return vae.eval().requires_grad_(False)


def _entanglement(mean: Tensor) -> Tensor:
    """How far the channels' covariance is from the unit matrix, and their means from zero."""
    flat = mean.permute(1, 0, 2, 3).flatten(1)
    middle = flat.mean(1, keepdim=True)
    spread = (flat - middle) @ (flat - middle).T / flat.shape[1]
    return (spread - torch.eye(4, device=mean.device)).pow(2).sum() + middle.pow(2).sum()


def vary(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored, upside down, with colours exchanged: so that it serves for pictures of other things, too."""
    made = []
    for picture in pictures:
        flips = torch.rand(3, generator=generator)
        axes = [axis for axis, chance in ((2, flips[0]), (1, flips[1])) if chance < 0.3]
        mixed = picture[torch.randperm(3, generator=generator)] if flips[2] < 0.4 else picture
        made.append(mixed.flip(axes) if axes else mixed)
    return torch.stack(made)


def difference(made: Tensor, wanted: Tensor) -> Tensor:
    """How far two pictures are apart: pixel by pixel, in edges, and in the colours of squares of 4 and of 16 pixels."""
    error = made - wanted
    coarse = sum(nn.functional.avg_pool2d(error, side).abs().mean() for side in (4, 16))
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + error.pow(2).mean() + 0.5 * edges + coarse


@torch.no_grad()
def normalise(vae: Any, pictures: Tensor) -> None:
    """Give the latents zero mean, the deviation 1 / scaling factor, and no correlation between channels.

    The transform goes into the 1 x 1 convolutions behind the encoder and, inverted, before the decoder, so that what is
    encoded and decoded stays the same.
    """
    mean = vae.encode(pictures).latent_dist.mean
    flat = mean.permute(1, 0, 2, 3).flatten(1).double()
    middle = flat.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh((flat - middle) @ (flat - middle).T / flat.shape[1])
    forth = (vectors @ torch.diag(values.rsqrt()) @ vectors.T) / SCALING
    back = torch.linalg.inv(forth)
    last, first = vae.quant_conv, vae.post_quant_conv
    weight, bias = last.weight[:4].flatten(1).double(), last.bias[:4].double()
    last.weight[:4] = (forth @ weight).view(4, -1, 1, 1)
    last.bias[:4] = forth @ (bias - middle.flatten())
    last.weight[4:].zero_()
    last.bias[4:].fill_(-4.0)  # log-variance: 0.135, a 40th of the latents' own deviation of 5.5
    weight = first.weight.flatten(1).double()
    first.bias.add_((weight @ middle.flatten()).float())
    first.weight.copy_((weight @ back).view(4, 4, 1, 1))
