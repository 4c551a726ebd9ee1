"""Qwen-Image 2.1 is trained as diffusers' pipeline draws with it: the same condition, network, times and pictures."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from training import families, sample
from training.families.family import Base, Where
from training.ports import Example

Bases = Callable[..., Path]
CPU = torch.device("cpu")
CAPTIONS = ("a photo of sks dog", "dog", "")
FOUND = families.find("qwen-image-21")


@pytest.fixture(scope="module")
def base(bases: Bases) -> Base:
    return FOUND.load(Where(bases("qwen-image-21"), CPU, torch.float32))


@pytest.fixture(scope="module")
def pipeline(bases: Bases) -> Any:
    return sample.load_pipeline(str(bases("qwen-image-21")), "qwen-image-21", CPU)


@pytest.fixture(scope="module")
def conditions(base: Base, pictures: Callable[..., list[Example]]) -> list[dict[str, torch.Tensor]]:
    example = pictures(1)[0]
    return FOUND.encode_captions(base, [replace(example, caption=caption) for caption in CAPTIONS])


def test_the_condition_is_that_of_the_pipeline(pipeline: Any, conditions: Any) -> None:
    """Before the encoder's last norm, and without the system's message."""
    for caption, condition in zip(CAPTIONS, conditions, strict=True):
        wanted, mask, _ = pipeline.encode_prompt(caption)
        assert mask is None
        torch.testing.assert_close(condition["context"], wanted[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_its_step_is_that_of_diffusers_network(base: Base, pipeline: Any, conditions: Any, checkpointing: bool) -> None:
    """Also for captions of different lengths, where padding would move the picture, and for a picture that is wide."""
    mixed, times = torch.randn(3, 64, 4, 6, generator=torch.Generator().manual_seed(3)), torch.tensor([0.25, 0.5, 0.75])
    asked = mixed.clone().requires_grad_()
    base.checkpoint_gradients(checkpointing)
    try:
        together = FOUND.predict(base, asked, times, conditions)
        together.square().sum().backward()
    finally:
        base.checkpoint_gradients(False)
    own, theirs = mixed.clone().requires_grad_(), replace(base, load_denoiser=lambda: pipeline.transformer)
    assert type(theirs.denoiser).__name__ == "QwenImage21Transformer2DModel"
    alone = torch.cat([FOUND.predict(theirs, own[[n]], times[[n]], [conditions[n]]) for n in range(3)])
    alone.square().sum().backward()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(asked.grad, own.grad, rtol=1e-3, atol=1e-5)


def test_pictures_are_opaque_when_they_go_in_and_have_no_alpha_when_they_come_out(
    base: Base, pipeline: Any, pictures: Callable[..., list[Example]]
) -> None:
    seen: list[torch.Tensor] = []
    vae = base.encoders["vae"]
    encode = vae.encode
    vae.encode = lambda values: (seen.append(values), encode(values))[1]
    try:
        moments = FOUND.encode_pictures(base, pictures(1))
    finally:
        vae.encode = encode
    assert (seen[0].shape[1], seen[0][:, 3].min()) == (4, 1)
    assert moments[0].shape == (128, 4, 4)
    assert FOUND.decode(base, moments[0][None, :64]).shape == (1, 3, 64, 64)
    drawer = sample.DrawingPipeline.__new__(sample.DrawingPipeline)
    drawer._pipeline, drawer._record, drawer._adapters = pipeline, FOUND.record, []
    assert drawer.draw("dog", 1, strength=1.0, steps=1, guidance=1.0, size=(64, 64)).mode == "RGB"


def test_a_few_step_model_is_drawn_with_at_its_own_times(base: Base, bases: Bases, tmp_path: Path) -> None:
    """The training warns, and its previews have the times that the folder gives."""
    sigmas = [1.0, 0.8, 0.4]
    folder = shutil.copytree(bases("qwen-image-21"), tmp_path / "turbo")
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "sample_sigmas": sigmas}))
    turbo = FOUND.load(Where(folder, CPU, torch.float32))
    assert "few-step model" in turbo.warnings[0]
    assert (base.warnings, turbo.drawing) == ([], (3, 1.0))
    drawn = sample.load_pipeline(str(folder), "qwen-image-21", CPU)
    drawn(prompt="dog", width=64, height=64, output_type="latent")
    torch.testing.assert_close(FOUND.levels(turbo, 3, (4, 4)), drawn.scheduler.sigmas[:-1], rtol=1e-5, atol=1e-6)
