"""The plain loop of `make bench-resume`, in its own process: what diffusers' LoRA scripts do on one device.

It has a shuffling DataLoader, and draws noise, times and latents from torch's generator, which is seeded once. At
intervals it saves a checkpoint with the LoRA, the optimizer and the states of the generators, like accelerate's
`save_state`. A second start loads the newest checkpoint and continues at its step with a new pass over the pictures,
because no checkpoint has the position in the old pass.
"""

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

lib: Any = diffusers  # its classes are untyped to the checker


def main() -> int:
    """Train to the end, from the newest checkpoint if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, required=True)
    given = parser.parse_args()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    given.out.mkdir(exist_ok=True)
    pipeline = lib.StableDiffusionPipeline.from_pretrained(given.base, local_files_only=True)
    unet = pipeline.unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=32, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    learnt = [part for part in unet.parameters() if part.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-4)
    step = _resume(given.out, unet, optimizer)
    pictures = [_pixels(path) for path in sorted(given.pictures.glob("*.png"))]
    loader: Any = torch.utils.data.DataLoader(pictures, batch_size=1, shuffle=True)  # type: ignore[arg-type]
    context = _context(pipeline)
    while step < given.steps:
        for pixels in loader:
            _step(pipeline, unet, pixels, context, learnt, optimizer)
            step += 1
            if step % given.every == 0:
                _keep(given.out / f"checkpoint-{step}", unet, optimizer)
            if step == given.steps:
                break
    save_file(get_peft_model_state_dict(unet), given.out / "lora.safetensors")
    return 0


def _pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as picture:
        values = np.asarray(picture.convert("RGB").resize((64, 64)), np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)


def _context(pipeline: Any) -> torch.Tensor:
    ids = pipeline.tokenizer(
        "a photo of zrk mascot", padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        states: torch.Tensor = pipeline.text_encoder(ids).last_hidden_state
    return states


def _step(
    pipeline: Any, unet: Any, pixels: torch.Tensor, context: torch.Tensor, learnt: list[Any], optimizer: Any
) -> None:
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.sample() * pipeline.vae.config.scaling_factor
    noise = torch.randn_like(latents)
    times = torch.randint(0, pipeline.scheduler.config.num_train_timesteps, (len(latents),))
    noisy = pipeline.scheduler.add_noise(latents, noise, times)
    predicted = unet(noisy, times, context, return_dict=False)[0]
    functional.mse_loss(predicted, noise).backward()
    torch.nn.utils.clip_grad_norm_(learnt, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _keep(folder: Path, unet: Any, optimizer: Any) -> None:
    """Save LoRA, optimizer and generators. The folder gets its name last, so a kill leaves no partial checkpoint."""
    temporary = folder.with_name(f".{folder.name}")
    temporary.mkdir(exist_ok=True)
    save_file(get_peft_model_state_dict(unet), temporary / "lora.safetensors")
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    torch.save({"optimizer": optimizer.state_dict(), "states": states}, temporary / "rest.pt")
    temporary.rename(folder)


def _resume(out: Path, unet: Any, optimizer: Any) -> int:
    steps = [int(path.name.removeprefix("checkpoint-")) for path in out.glob("checkpoint-*")]
    if not steps:
        return 0
    folder = out / f"checkpoint-{max(steps)}"
    set_peft_model_state_dict(unet, load_file(folder / "lora.safetensors"))
    held = torch.load(folder / "rest.pt", weights_only=False)
    optimizer.load_state_dict(held["optimizer"])
    random.setstate(held["states"]["python"])
    np.random.set_state(held["states"]["numpy"])
    torch.set_rng_state(held["states"]["torch"])
    return max(steps)


if __name__ == "__main__":
    sys.exit(main())
