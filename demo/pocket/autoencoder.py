"""Part 1: train the autoencoder, which converts 64 x 64 pixels to 16 x 16 x 8 latents and back."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from demo.pocket.lesson import Lesson, compose_batch, draw_batch
from demo.pocket.networks import LATENT_CHANNELS, SCALING, make_vae
from demo.pocket.scenes import PocketScene
from demo.pocket.things import EVERY_CREATURE, EVERY_SHAPE
from demo.pocket.words import COLOURS

BATCH = 8
_NOISE = 0.1  # on latents while learning: what the UNet draws is never exact, and must decode well all the same
_SEED = 101


def learn(folder: Path, steps: int, device: torch.device) -> Any:
    """Train the autoencoder, or resume; returns it with normalised latents."""
    torch.manual_seed(_SEED)
    vae, squares = make_vae().to(device, memory_format=torch.channels_last), nn.Conv2d(LATENT_CHANNELS, 12, 1)
    squares = squares.to(device)
    lesson = Lesson("vae", folder, {"vae": vae, "squares": squares}, peak=2e-3, decay=1e-4, muon=True)
    lesson.resume()

    def step_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(_SEED * 1_000_003 + step)
        pictures = vary(draw_batch(anything(_SEED, step, BATCH)), generator).to(device)
        mean = vae.encode(pictures).latent_dist.mean
        noise = torch.randn(mean.shape, generator=generator).to(device)
        again = vae.decode(mean + _NOISE * noise).sample
        # Left alone, some channels die early, drowned by the noise, and a colour with them. So they are held at unit
        # deviation and apart from one another, and the picture at half its size must be readable from them directly.
        half = nn.functional.pixel_unshuffle(nn.functional.avg_pool2d(pictures, 2), 2)
        preview_error = (squares(mean) - half).abs().mean()
        loss: Tensor = difference(again, pictures) + 0.1 * _entanglement(mean) + preview_error
        return loss

    lesson.learn(steps, step_of)
    normalise(vae, draw_batch(compose_batch(_SEED, -1, 256)).to(device))
    return vae.eval().requires_grad_(False)


def polish(folder: Path, steps: int, vae: Any, device: torch.device) -> Any:
    """Train only the decoder, on fixed latents. The UNet can be trained at the same time."""
    learnt = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    lesson = Lesson("decoder", folder, {"decoder": learnt}, peak=1e-3, decay=1e-4, muon=True)
    lesson.resume()

    def step_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(_SEED * 2_000_003 + step)
        pictures = vary(draw_batch(anything(_SEED + 1, step, BATCH)), generator).to(device)
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
    return (spread - torch.eye(LATENT_CHANNELS, device=mean.device)).pow(2).sum() + middle.pow(2).sum()


def anything(seed: int, step: int, count: int) -> list[PocketScene]:
    """Scenes. Every second one has things that no caption mentions, in arbitrary colours."""
    random = Random(f"{seed} {step} anything")
    made = []
    for number, scene in enumerate(compose_batch(seed, step, count)):
        if number % 2 == 0:
            things = [
                replace(
                    thing,
                    kind=random.choice(EVERY_CREATURE if thing.is_creature else EVERY_SHAPE),
                    colour=random.choice(list(COLOURS)),
                )
                for thing in scene.things
            ]
            scene = replace(scene, things=tuple(things))
        made.append(scene)
    return made


def vary(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures mirrored and with exchanged colours, so that the autoencoder also works for other pictures."""
    made = []
    for picture in pictures:
        mirrors, mixes = torch.rand(2, generator=generator)
        mixed = picture[torch.randperm(3, generator=generator)] if mixes < 0.3 else picture
        made.append(mixed.flip(2) if mirrors < 0.3 else mixed)
    return torch.stack(made)


def difference(made: Tensor, wanted: Tensor) -> Tensor:
    """The difference between two pictures: of pixels, of edges, and of mean colours in squares of 4 and 16 pixels."""
    error = made - wanted
    coarse = sum(nn.functional.avg_pool2d(error, side).abs().mean() for side in (4, 16))
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + error.pow(2).mean() + 0.5 * edges + coarse


@torch.no_grad()
def normalise(vae: Any, pictures: Tensor) -> None:
    """Give the latents zero mean, the deviation 1 / scaling factor, and no correlation between channels.

    The transform is merged into the 1 x 1 convolution after the encoder and, inverted, into the one before the decoder,
    so encoding and decoding a picture gives the same result as before.
    """
    mean = vae.encode(pictures).latent_dist.mean
    flat = mean.permute(1, 0, 2, 3).flatten(1).double()
    middle = flat.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh((flat - middle) @ (flat - middle).T / flat.shape[1])
    forth = (vectors @ torch.diag(values.rsqrt()) @ vectors.T) / SCALING
    back = torch.linalg.inv(forth)
    count = LATENT_CHANNELS
    last, first = vae.quant_conv, vae.post_quant_conv
    weight, bias = last.weight[:count].flatten(1).double(), last.bias[:count].double()
    last.weight[:count] = (forth @ weight).view(count, -1, 1, 1)
    last.bias[:count] = forth @ (bias - middle.flatten())
    last.weight[count:].zero_()
    last.bias[count:].fill_(-4.0)  # log-variance: 0.135, a 40th of the latents' own deviation of 5.5
    weight = first.weight.flatten(1).double()
    first.bias.add_((weight @ middle.flatten()).float())
    first.weight.copy_((weight @ back).view(count, count, 1, 1))
