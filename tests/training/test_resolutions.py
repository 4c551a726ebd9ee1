"""A training at several resolutions: each step draws one, from the seed, and a resume draws the same."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from core.errors import HandOver
from tests.training.conftest import Watcher
from training.backends.local import train
from training.engine.cohorts.slot_job import Scale, SlotJob
from training.families.latents import mask, pixels
from training.ports import Example, TrainRun


def enlarged(examples: Sequence[Example], folder: Path) -> list[Example]:
    """The same pictures, prepared for 128 px, with a mask."""
    made = []
    for number, one in enumerate(examples):
        path = folder / f"{number}.png"
        with Image.open(one.path) as picture:
            large = picture.convert("RGBA").resize((2 * one.width, 2 * one.height))
        large.putalpha(Image.linear_gradient("L").resize(large.size))
        large.save(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        made.append(replace(one, path=path, sha256=sha256, width=large.width, height=large.height))
    return made


@pytest.mark.parametrize("family", ["sd15", "flux2-klein-4b"])
def test_each_step_draws_one_and_a_resume_draws_the_same(
    runs: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    seen: dict[int, int] = {}
    drawn = SlotJob.scale

    def watched(job: SlotJob, step: int) -> Scale:
        found = drawn(job, step)
        side = found.moments[0].shape[-1]
        assert seen.setdefault(step, side) == side
        assert {len(part) for part in (found.moments, found.conditions, found.extras.masks)} == {5}
        return found

    monkeypatch.setattr(SlotJob, "scale", watched)

    def run(name: str, stop_before: int | None = None) -> TrainRun:
        control = Watcher(stop_before, HandOver() if stop_before else None)
        options = {"data": {"resolutions": [64, 128], "flip": True}, "objective": {"masked": True}}
        made = runs(family, name=name, resolution=128, max_steps=8, epochs=4, every=1, control=control, **options)
        return replace(made, examples=enlarged(made.examples, tmp_path))

    whole = train(run("whole"))
    small, large = sorted(set(seen.values()))
    assert (large, len(seen)) == (2 * small, 8)
    broken = run("whole", stop_before=5)
    with pytest.raises(HandOver):
        train(broken)
    resumed = train(replace(run("whole"), checkpoints=broken.checkpoints))
    assert resumed.resumed_from > 0
    assert resumed.sha256 == whole.sha256


def test_a_prepared_picture_is_scaled_down_with_its_mask(runs: Callable[..., TrainRun], tmp_path: Path) -> None:
    one = enlarged(runs().examples[:1], tmp_path)[0]
    small = replace(one, width=64, height=64, prepared=(128, 128))
    assert pixels(small).shape == (1, 3, 64, 64)
    whole = torch.nn.functional.interpolate(pixels(one), scale_factor=0.5, mode="area")
    assert (pixels(small) - whole).abs().mean() < 0.02
    assert torch.allclose(mask(small, (8, 8)), mask(one, (8, 8)), atol=0.02)
