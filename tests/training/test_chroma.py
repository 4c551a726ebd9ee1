"""Chroma attends to a caption and one token of padding: alone, in a batch, and as diffusers' pipeline draws."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from training import families, sample
from training.families import patches
from training.families.family import Base, Where
from training.ports import Example

Bases = Callable[..., Path]
CPU = torch.device("cpu")
CAPTIONS = ("a photo of sks dog", "dog")
FOUND = families.find("chroma")


@pytest.fixture(scope="module")
def base(bases: Bases) -> Base:
    return FOUND.load(Where(bases("chroma"), CPU, torch.float32))


@pytest.fixture(scope="module")
def conditions(base: Base, pictures: Callable[..., list[Example]]) -> list[dict[str, torch.Tensor]]:
    example = pictures(1)[0]
    return FOUND.encode_captions(base, [replace(example, caption=caption) for caption in CAPTIONS])


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([0.25, 0.75])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_captions_of_different_lengths_share_a_step(base: Base, conditions: Any, checkpointing: bool) -> None:
    """With gradients too, where diffusers' checkpointing forgets the mask."""
    assert len(conditions[0]["context"]) > len(conditions[1]["context"])
    mixed, times = inputs()
    alone = [FOUND.predict(base, mixed[[one]], times[[one]], [conditions[one]]).detach() for one in (0, 1)]
    base.checkpoint_gradients(checkpointing)
    try:
        with torch.enable_grad():
            asked = mixed.clone().requires_grad_()
            together = FOUND.predict(base, asked, times, conditions)
            together.square().sum().backward()
    finally:
        base.checkpoint_gradients(False)
    torch.testing.assert_close(together.detach(), torch.cat(alone), rtol=1e-4, atol=1e-5)
    wanted = mixed[[1]].clone().requires_grad_()
    FOUND.predict(base, wanted, times[[1]], [conditions[1]]).square().sum().backward()
    torch.testing.assert_close(asked.grad[1:], wanted.grad, rtol=1e-3, atol=1e-4)


def test_diffusers_pipeline_draws_what_was_trained(base: Base, bases: Bases, conditions: Any) -> None:
    """Its own mask of 1 and 0 masks nothing."""
    mixed, _ = inputs()
    pipeline = sample.load_pipeline(str(bases("chroma")), "chroma", CPU)
    seen: list[Any] = []
    pipeline.transformer.register_forward_hook(
        lambda network, given, named, made: seen.append((named, made[0].clone())), with_kwargs=True
    )
    pipeline(prompt=CAPTIONS[1], num_inference_steps=1, width=64, height=64, guidance_scale=1.0,
             latents=patches.split(mixed[[1]]), output_type="latent")  # fmt: skip
    named, made = seen[0]
    wanted = FOUND.predict(base, mixed[[1]], named["timestep"], [conditions[1]]).detach()
    torch.testing.assert_close(made, patches.split(wanted), rtol=1e-4, atol=1e-5)
