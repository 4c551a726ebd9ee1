"""Write the finished model as a diffusers folder in float16, and draw with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL.Image import Image

from demo.pocket.networks import noise_schedule, tokenizer

lib: Any = diffusers

SAMPLING_STEPS, GUIDANCE = 20, 4.0


def save(folder: Path, vae: Any, text_encoder: Any, unet: Any) -> None:
    """Write the pipeline. The scheduler needs few steps; training reads only its noise."""
    # StableDiffusionPipeline needs clip_sample=False: it would change another value.
    scheduler = lib.DDIMScheduler(**noise_schedule(), clip_sample=False)
    pipeline = lib.StableDiffusionPipeline(
        vae=vae.cpu().half(),
        text_encoder=text_encoder.cpu().half(),
        tokenizer=tokenizer(),
        unet=unet.cpu().half().to(memory_format=torch.contiguous_format),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)


def load(folder: Path) -> Any:
    """The pipeline in float32, quiet."""
    lib.utils.logging.disable_progress_bar()
    pipeline = lib.StableDiffusionPipeline.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, prompts: Sequence[str], seed: int, guidance: float = GUIDANCE) -> list[Image]:
    """One picture of 64 x 64 for each prompt, in batches of 16."""
    pictures: list[Image] = []
    for start in range(0, len(prompts), 16):
        some = list(prompts[start : start + 16])
        generators = [torch.Generator().manual_seed(seed * 1000 + start + i) for i in range(len(some))]
        made = pipeline(
            some, num_inference_steps=SAMPLING_STEPS, guidance_scale=guidance, generator=generators, width=64, height=64
        )
        pictures += made.images
    return pictures
