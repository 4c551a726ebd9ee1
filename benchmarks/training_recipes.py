"""The recipes of `make bench-train`: plain diffusers and peft, the same with caches, and Imprint's."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from peft import LoraConfig
from PIL import Image
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training import families
from training.backends.local_training import LocalTraining
from training.checkpoint_folder import FolderCheckpoints
from training.engine.cohorts.cohort import Cohort
from training.engine.engine import Engine
from training.families.diffusion import DiscreteSchedule
from training.families.encoders import Encoders
from training.families.family import Base, Where, vae_dtype
from training.ports import Example, Progress, TrainRun
from training.spec import TrainSpec
from training.tiny import base as tiny_base
from training.tiny.words import clip_vocabulary

Step = Callable[[], Any]
lib: Any = diffusers  # its classes are untyped to the checker

RANK, ALPHA, RATE = 4, 32.0, 1e-4
PIXELS = {"tiny": 64, "full": 512}
CAPTION = "a photo of sks dog"

# https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5: unet, vae and text_encoder, config.json of each.
UNET: dict[str, Any] = {
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "cross_attention_dim": 768, "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
}  # fmt: skip
_TEXT = CLIPTextConfig(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
    max_position_embeddings=77,
)  # fmt: skip


class NoControl:
    """A control that does nothing."""

    def check(self) -> None: ...

    def report(self, progress: Progress) -> None: ...


def base_of(size: str, device: torch.device, dtype: torch.dtype, folder: Path) -> Base:
    """The tiny base model, or one of the exact shapes of sd15 with random weights; each with VAE and text encoder."""
    if size == "tiny":
        return families.find("sd15").load(Where(tiny_base.make(folder / "tiny"), device, dtype))
    vocabulary, merges = clip_vocabulary()
    encoders = Encoders(
        {
            "tokenizer": lambda: CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77),  # type: ignore[arg-type]
            "text_encoder": lambda: random(lambda: CLIPTextModel(_TEXT), device, torch.float32),
            "vae": lambda: random(lambda: lib.AutoencoderKL(**_VAE), device, vae_dtype(dtype)),
        },
        device,
    )
    alphas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).pow(2).neg().add(1).cumprod(0).to(device)
    unet = partial(random, lambda: lib.UNet2DConditionModel(**UNET), device, dtype)
    return Base(unet, encoders, DiscreteSchedule(alphas, 0.18215, "epsilon"), device, dtype, "epsilon")


def random(make: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A frozen network with random weights of the size of an untrained one, created on its device."""
    with torch.device("meta"):
        network = make().to(dtype)
    network = network.to_empty(device=device).requires_grad_(False).eval()
    with torch.no_grad():
        for name, part in network.named_parameters():
            if part.ndim == 1:
                part.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                part.uniform_(-1, 1).mul_(part[0].numel() ** -0.5)
        for buffer in network.buffers():
            buffer.copy_(torch.arange(buffer.numel()).view(buffer.shape))  # position_ids
    return network


# ---- the recipe of diffusers' train_text_to_image_lora, and the same from caches -----------------------------------


def plain(base: Base, size: str, *, cached: bool) -> Step:
    """One step of the plain loop: VAE and text encoder (once only if `cached`), UNet with peft, clip, AdamW."""
    unet, schedule = base.denoiser, base.schedule
    vae, text_encoder = (base.encoders[part].to(base.device) for part in ("vae", "text_encoder"))
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["to_q", "to_k", "to_v", "to_out.0"])  # type: ignore[arg-type]
    unet.add_adapter(config)
    unet.train()
    learnt = [part for part in unet.parameters() if part.requires_grad]
    for part in learnt:
        part.data = part.data.float()
    optimizer = torch.optim.AdamW(learnt, lr=RATE)
    pixels = torch.rand(1, 3, PIXELS[size], PIXELS[size], device=base.device) * 2 - 1
    ids = base.encoders["tokenizer"](
        CAPTION, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids.to(base.device)
    bfloat = base.dtype == torch.bfloat16

    def encode() -> tuple[Any, Any]:
        with torch.no_grad():
            return vae.encode(pixels.to(vae.dtype)).latent_dist, text_encoder(ids).last_hidden_state

    kept = encode() if cached else None

    def step() -> None:
        distribution, context = kept or encode()
        latents = distribution.sample().float() * schedule.scaling
        noise = torch.randn_like(latents)
        times = torch.randint(0, 1000, (1,), device=base.device)
        a = schedule.alphas[times].view(-1, 1, 1, 1)
        noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
        with torch.autocast(base.device.type, torch.bfloat16, enabled=bfloat):
            predicted = unet(noisy.to(base.dtype), times, context.to(base.dtype), return_dict=False)[0]
        functional.mse_loss(predicted.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def forward(base: Base, size: str) -> Step:
    """Only the UNet's forward pass, by diffusers' own module: half of the minimum that a step needs."""
    side = PIXELS[size] // 8
    latents = torch.randn(1, 4, side, side, device=base.device, dtype=base.dtype)
    context = torch.randn(1, 77, base.denoiser.config.cross_attention_dim, device=base.device, dtype=base.dtype)
    times = torch.tensor([500], device=base.device)

    def step() -> None:
        with torch.no_grad():
            base.denoiser(latents, times, context, return_dict=False)

    return step


# ---- Imprint's recipe ----------------------------------------------------------------------------------------------


def ours(base: Base, size: str, folder: Path, jobs: int = 1) -> Step:
    """One step of the engine with `jobs` jobs in as many slots, each with its own pictures, captions and seed."""
    family = families.find("sd15")
    engine = Engine(family, base)
    slot_jobs = [
        LocalTraining(
            run_of(folder, size, seed, jobs, pictures=2 if size == "tiny" else 1), engine, {"base": ""}, 10**6, None
        ).job
        for seed in range(jobs)
    ]
    cohort = Cohort(family, base, engine.layers, slot_jobs[0].shape, jobs, engine.recorder)
    for job in slot_jobs:
        cohort.seat(job)
    return cohort.step


def run_of(
    folder: Path, size: str, seed: int, jobs: int, *, base: Path | None = None, pictures: int = 2, epochs: int = 100
) -> TrainRun:
    """A run on `pictures` pictures, of a recipe's defaults; files go to `folder`."""
    spec = TrainSpec(
        base_model="sd15", family="sd15", trigger_word="sks dog", rank=RANK, alpha=ALPHA, learning_rate=RATE,
        resolution=PIXELS[size], epochs=epochs, seed=seed,
    )  # fmt: skip
    return TrainRun(
        job_id=f"bench-{seed}",
        spec=spec,
        examples=[_picture(folder, PIXELS[size], number) for number in range(pictures)],
        dataset_sha256="d" * 64,
        base_model=str(base or "sd15"),
        out=folder / f"lora-{seed}.safetensors",
        checkpoints=FolderCheckpoints(folder / f"checkpoints-{seed}"),
        control=NoControl(),
        encodings=folder / "encodings",
        slots=jobs,
    )


def _picture(folder: Path, pixels: int, number: int) -> Example:
    path = folder / f"{number}-{pixels}.png"
    if not path.exists():
        values = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(values).resize((pixels, pixels)).save(path)
    return Example(path, CAPTION, hashlib.sha256(path.read_bytes()).hexdigest(), pixels, pixels)


def save(folder: Path, device: torch.device) -> Path:
    """The large base model with random weights, drawn on `device`, in diffusers' layout on disk."""
    base = base_of("full", device, torch.float16, folder)
    scheduler = lib.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    lib.StableDiffusionPipeline(
        unet=base.denoiser, **base.encoders, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)  # fmt: skip
    return folder
