"""A LoRA file says the same when diffusers reads it back as the live model said: scale, keys, every layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.errors import LoraInvalid
from tests.training.live import Live
from training import families, lora_file, sample
from training.backends.local import train
from training.families.family import Where
from training.ports import TrainRun

Runs = Callable[..., TrainRun]
# float32 files come back exactly; the rounding of 16-bit ones is a part in 2,000 (float16) or 256 (bfloat16) of the
# LoRA.
TOLERANCE = {"sd15": 1e-5, "sdxl": 2e-3, "z-image": 2e-2}


def trained(run: TrainRun) -> tuple[Live, Path]:
    """A live model with its adapter after training, and the file that such a training writes."""
    result = train(run)
    found = families.find(run.spec.family)
    folder = Path(run.base_model)
    base = found.load(Where(folder, torch.device("cpu"), torch.float32))
    live = Live(run, found, base)
    for _ in range(6):
        live.step()
    return live, result.path


def answer(family: str, denoiser: Any, live: Live) -> torch.Tensor:
    """What a denoiser says to fixed inputs, through the family's own loss code."""
    found, base = families.find(family), live.base
    made = found.draw(base, torch.stack(live.moments[:2]), torch.Generator().manual_seed(3))
    kept, base.denoiser = base.denoiser, denoiser
    seen: list[torch.Tensor] = []
    hook = denoiser.register_forward_hook(lambda _module, _given, out: seen.append(out[0]))
    with torch.no_grad():
        found.losses(base, made, live.conditions[:2])
    hook.remove()
    base.denoiser = kept
    said = seen[0]
    return torch.stack(said) if isinstance(said, list) else said


@pytest.mark.parametrize("family", ["sd15", "sdxl", "z-image"])
def test_diffusers_reads_the_live_model_back(runs: Runs, family: str) -> None:
    run = runs(family, rank=4, alpha=32.0, learning_rate=1e-2)
    live, path = trained(run)
    pipeline = sample.load(run.base_model, family, torch.device("cpu"))
    denoiser = pipeline.unet if family != "z-image" else pipeline.transformer
    before = answer(family, denoiser, live)
    with live.applied():
        wanted = answer(family, live.base.denoiser, live)
    assert sample.add_lora(pipeline, path) == len(live.cohort.layout.sites)
    got = answer(family, denoiser, live)
    change = (wanted - before).norm()
    assert change > 1e-2 * before.norm()  # the LoRA does something
    assert (got - wanted).norm() < TOLERANCE[family] * change


def test_scale_survives(runs: Runs) -> None:
    """Rank 4, alpha 32 is scale 8 in the live model, in the file, and after diffusers has read it."""
    run = runs(rank=4, alpha=32.0)
    live, path = trained(run)
    assert live.cohort.stack.scales.tolist() == [[8.0]]
    pipeline = sample.load(run.base_model, "sd15", torch.device("cpu"))
    sample.add_lora(pipeline, path)
    read = [module for module in pipeline.unet.modules() if hasattr(module, "lora_A")]
    assert {scale for layer in read for scale in layer.scaling.values()} == {8.0}


def test_keys_are_those_that_comfyui_reads(runs: Runs) -> None:
    held = load_file(train(runs()).path)
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    assert {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"} <= set(held)
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0.alpha" in held
    assert held[f"{stem}.alpha"].item() == 32.0
    held = load_file(train(runs("z-image", name="z")).path)
    stem = "diffusion_model.layers.1.attention.to_q"
    assert {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.alpha"} <= set(held)
    assert held[f"{stem}.lora_A.weight"].dtype == torch.bfloat16
    assert not any("refiner" in name for name in held)


def test_pictures_are_the_same_for_the_same_seed_and_change_with_the_lora(runs: Runs) -> None:
    run = runs(learning_rate=1e-2)
    path = train(run).path
    given: dict[str, Any] = {"steps": 2, "size": (64, 64), "device": "cpu"}
    plain = sample.draw(run.base_model, "sd15", ["a photo of sks dog"], [1], **given)[0]
    again = sample.draw(run.base_model, "sd15", ["a photo of sks dog"], [1], **given)[0]
    changed = sample.draw(run.base_model, "sd15", ["a photo of sks dog"], [1], lora=path, **given)[0]
    assert plain.size == (64, 64)
    assert np.array_equal(np.asarray(plain), np.asarray(again))
    assert not np.array_equal(np.asarray(plain), np.asarray(changed))


def test_a_file_that_does_not_fit_is_no_lora(runs: Runs, tmp_path: Path) -> None:
    run = runs()
    pipeline = sample.load(run.base_model, "sd15", torch.device("cpu"))
    pair = np.ones((4, 32)), np.ones((32, 4))
    near, far = (f"down_blocks.{block}.attentions.0.transformer_blocks.0.attn1.to_q" for block in (0, 7))
    lora_file.write(tmp_path / "far.safetensors", lora_file.to_bytes("sd15", {far: pair}, 32.0, {}))
    with pytest.raises(LoraInvalid, match="cannot load"):
        sample.add_lora(pipeline, tmp_path / "far.safetensors")
    # diffusers itself takes this one without a word.
    lora_file.write(tmp_path / "part.safetensors", lora_file.to_bytes("sd15", {near: pair, far: pair}, 32.0, {}))
    with pytest.raises(LoraInvalid, match="loaded 1 of the 2 layers"):
        sample.add_lora(pipeline, tmp_path / "part.safetensors")
    with pytest.raises(LoraInvalid):
        sample.add_lora(pipeline, tmp_path / "none.safetensors")
