"""Part 3: the UNet learns to draw captions, from latents that are encoded once and stored on disk."""

from pathlib import Path
from random import Random
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from demo.pocket.captions import describe
from demo.pocket.lesson import Lesson, compose_batch, draw_batch
from demo.pocket.networks import LATENT_CHANNELS, LATENT_SIDE, SCALING, make_unet, noise_schedule, tokenizer
from demo.pocket.reader import tokenize
from demo.pocket.scenes import PocketScene

BATCH = 32
_UNTOLD = 0.1  # share of the steps that learn without a caption, which guidance needs
_PEAK = 2e-3  # learning rate
_SEED = 303
_CHUNK = 64
_FIRST, _GROWTH = 4096, 4  # drawings in the pool at the first step, and more of them with every step

lib: Any = diffusers


class Pool:
    """Scenes and their latents, [N, 8, 16, 16] float16 of unit deviation, in a file that survives a restart."""

    def __init__(self, folder: Path, vae: Any, count: int, device: torch.device) -> None:
        self.device = device
        self.path, self.vae, self.count = folder / f"latents-{count}.npy", vae, count
        if self.path.is_file():
            self.latents = open_memmap(self.path, mode="r+")
        else:
            shape = (count, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE)
            self.latents = open_memmap(self.path, mode="w+", dtype=np.float16, shape=shape)
        self.scenes: list[PocketScene] = []
        self.there: set[int] = set()
        for chunk in range(count // _CHUNK):
            self.scenes += compose_batch(_SEED, chunk, _CHUNK)

    def known(self, step: int) -> int:
        """The size of the pool at this step. It grows during the training, so that the first step does not wait."""
        known = min(len(self.scenes), _FIRST + step * _GROWTH)
        for start in range(0, known, _CHUNK):
            if start not in self.there:
                self._encode(start)
        return known

    @torch.no_grad()
    def _encode(self, start: int) -> None:
        if not np.any(self.latents[start + _CHUNK - 1]):  # else it was encoded before a restart
            pictures = draw_batch(self.scenes[start : start + _CHUNK]).to(self.device)
            mean = self.vae.encode(pictures).latent_dist.mean
            self.latents[start : start + _CHUNK] = (mean * SCALING).cpu().numpy().astype(np.float16)
        self.there.add(start)


def learn(folder: Path, steps: int, vae: Any, encoder: Any, drawings: int, device: torch.device) -> Any:
    """Train the UNet, or resume; returns it with averaged weights."""
    torch.manual_seed(_SEED)
    pool = Pool(folder, vae, drawings, device)
    unet, words = make_unet().to(device), tokenizer()
    if device.type == "cpu":
        unet = unet.to(memory_format=torch.channels_last)  # a seventh faster
    lesson = Lesson("unet", folder, {"unet": unet}, peak=_PEAK, decay=1e-2, muon=True)
    lesson.resume()
    alphas = lib.DDPMScheduler(**noise_schedule()).alphas_cumprod.to(device)

    def step_of(step: int) -> Tensor:
        random = Random(f"{_SEED} {step} captions")
        generator = torch.Generator().manual_seed(_SEED * 1_000_003 + step)
        known = pool.known(step)
        picks = [random.randrange(known) for _ in range(BATCH)]
        texts = [describe(pool.scenes[pick], random).text for pick in picks]
        texts = ["" if random.random() < _UNTOLD else text for text in texts]
        with torch.no_grad():
            context = encoder(tokenize(words, texts).to(device)).last_hidden_state
        latents = torch.from_numpy(pool.latents[picks].astype(np.float32)).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        # One time in each of so many spans, so that the loss swings less.
        spans = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
        times = (spans * len(alphas)).long().clamp(0, len(alphas) - 1).to(device)
        a = alphas[times].view(-1, 1, 1, 1)
        predicted = unet(a.sqrt() * latents + (1 - a).sqrt() * noise, times, context, return_dict=False)[0]
        loss: Tensor = (predicted - (a.sqrt() * noise - (1 - a).sqrt() * latents)).pow(2).mean()
        return loss

    lesson.learn(steps, step_of, averaged=unet)
    unet.load_state_dict(lesson.average)
    return unet.eval().requires_grad_(False)
