"""The two sides of `make bench-quality`: Imprint's engine, and diffusers' LoRA script as a plain loop with peft."""

import hashlib
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from peft import LoraConfig

from demo.pocket import assemble
from demo.pocket.judge import as_tensor
from demo.pocket.reader import tokenize
from demo.pocket.strangers import Stranger, album
from training.backends.local import train
from training.checkpoint_folder import FolderCheckpoints
from training.ports import Example, Progress, TrainRun
from training.sample import add_lora
from training.spec import TrainSpec


@dataclass(frozen=True)
class Trained:
    """A pipeline with its LoRA in place."""

    pipeline: Any
    seconds: float


class _Quiet:
    """A control that does nothing."""

    def check(self) -> None:
        pass

    def report(self, progress: Progress) -> None:
        pass


def spec_of(model: Path, stranger: Stranger, steps: int | None, seed: int, asked: Mapping[str, Any]) -> TrainSpec:
    """The family's recipe at 64 pixels, the size of the pocket model, with the requested changes."""
    given = {"base_model": str(model), "family": "sd15", "trigger_word": stranger.trigger, "resolution": 64}
    return TrainSpec.model_validate({**given, "max_steps": steps, "seed": seed, **asked})


def ours(model: Path, stranger: Stranger, spec: TrainSpec, folder: Path) -> Trained:
    """Train with Imprint's engine, and load the file with diffusers."""
    folder.mkdir(parents=True)
    examples = []
    for number, (drawn, caption) in enumerate(album(stranger)):
        held = io.BytesIO()
        drawn.save(held, "PNG")
        path = folder / f"{number:02}.png"
        path.write_bytes(held.getvalue())
        examples.append(Example(path, caption, hashlib.sha256(held.getvalue()).hexdigest(), *drawn.size))
    dataset = hashlib.sha256("".join(example.sha256 for example in examples).encode()).hexdigest()
    out = folder / "lora.safetensors"
    run = TrainRun(
        job_id=stranger.name,
        spec=spec,
        examples=examples,
        dataset_sha256=dataset,
        base_model=str(model),
        out=out,
        checkpoints=FolderCheckpoints(folder / "checkpoints"),
        control=_Quiet(),
        device="cpu",
        checkpoint_every_epochs=500,
    )
    result = train(run)
    pipeline = assemble.load(model)
    add_lora(pipeline, out)
    return Trained(pipeline, result.train_seconds)


def plain(model: Path, stranger: Stranger, spec: TrainSpec, _: Path) -> Trained:
    """diffusers' train_text_to_image_lora.py with a spec's rank, alpha, learning rate and steps."""
    return _peft_loop(model, stranger, spec, spec.alpha)


def default_scale(model: Path, stranger: Stranger, spec: TrainSpec, _: Path) -> Trained:
    """The same with the script's own alpha, which is the rank."""
    return _peft_loop(model, stranger, spec, float(spec.rank))


def _peft_loop(model: Path, stranger: Stranger, spec: TrainSpec, alpha: float) -> Trained:
    """The script's loop: gaussian initial weights, AdamW, shuffled epochs, times and noise from one generator.

    Moments and text states are computed once, which saves most of the time and changes no result.
    """
    torch.manual_seed(spec.seed)
    pipeline = assemble.load(model)
    unet, vae, encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    unet.requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        init_lora_weights="gaussian",
        target_modules=targets,
    )
    unet.add_adapter(config)
    learnt = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=spec.learning_rate, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    shown = album(stranger)
    with torch.no_grad():
        posteriors = [vae.encode(as_tensor([drawn])).latent_dist for drawn, _ in shown]
        states = [encoder(tokenize(pipeline.tokenizer, [caption])).last_hidden_state for _, caption in shown]
    begun = time.monotonic()
    unet.train()
    order: list[int] = []
    for _ in range(spec.steps(len(shown))):
        order = order or torch.randperm(len(shown)).tolist()
        pick = order.pop()
        latents = posteriors[pick].sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        times = torch.randint(0, schedule.config.num_train_timesteps, (1,))
        predicted = unet(schedule.add_noise(latents, noise, times), times, states[pick], return_dict=False)[0]
        is_v = schedule.config.prediction_type == "v_prediction"
        wanted = schedule.get_velocity(latents, noise, times) if is_v else noise
        torch.nn.functional.mse_loss(predicted.float(), wanted.float()).backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.monotonic() - begun
    unet.eval()
    return Trained(pipeline, seconds)


TRAINERS: dict[str, Callable[[Path, Stranger, TrainSpec, Path], Trained]] = {
    "ours": ours,
    "family": ours,
    "plain": plain,
    "default_scale": default_scale,
}
