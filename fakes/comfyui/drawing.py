"""The pictures of the fake server, which show the inputs of a drawing as text, for people and for tests.

The colours depend on everything that a real picture depends on: another seed, prompt or LoRA gives another picture, and
the same inputs give the same bytes.
"""

import hashlib
import io
import json
import random
import textwrap
from dataclasses import asdict, dataclass, replace
from typing import Any

from PIL import Image, ImageDraw, PngImagePlugin

_BLOCKS = 16  # colours along a side


@dataclass(frozen=True)
class Model:
    """A base model with its LoRAs, each as (file, strength, number of changed modules)."""

    base: str
    kind: str  # sd15, sdxl, z-image
    loras: tuple[tuple[str, float, int], ...] = ()

    def with_lora(self, file: str, strength: float, modules: int) -> "Model":
        return replace(self, loras=(*self.loras, (file, strength, modules)))


@dataclass(frozen=True)
class SamplerPass:
    """The inputs of one sampler."""

    model: Model
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    seed: int
    steps: int


@dataclass(frozen=True)
class Latent:
    """A batch of latents, with the samplers that processed it."""

    width: int
    height: int
    batch: int = 1
    passes: tuple[SamplerPass, ...] = ()


def png(latent: Latent, number: int, prompt: dict[str, Any]) -> bytes:
    """Picture `number` of a batch as PNG, with the prompt in its metadata, and the inputs as JSON under `fake`."""
    about = {"number": number, "passes": [asdict(one) for one in latent.passes]}
    text = json.dumps(about, sort_keys=True)
    chance = random.Random(hashlib.sha256(text.encode()).digest())  # noqa: S311 - colours
    grid = Image.frombytes("RGB", (_BLOCKS, _BLOCKS), chance.randbytes(3 * _BLOCKS * _BLOCKS))
    picture = grid.resize((latent.width, latent.height), Image.Resampling.BICUBIC)
    lines = ["fake ComfyUI: nothing was drawn"]
    for one in latent.passes:
        lines += [f"{one.model.base}, seed {one.seed}, {one.steps} steps"]
        lines += [f"LoRA {file} at {strength:g} ({modules} modules)" for file, strength, modules in one.model.loras]
        lines += [f"+ {prompt}" for prompt in one.positive]
    wrapped = [part for line in lines for part in textwrap.wrap(line, max(12, latent.width // 7))]
    drawn = "\n".join(wrapped).encode("latin-1", "replace").decode("latin-1")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, latent.width, 8 + 15 * len(wrapped)), fill="black")
    draw.multiline_text((6, 4), drawn, fill="white")
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", json.dumps(prompt))
    info.add_text("fake", text)
    out = io.BytesIO()
    picture.save(out, "PNG", pnginfo=info)
    return out.getvalue()
