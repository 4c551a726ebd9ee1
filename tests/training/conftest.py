"""Tiny base models, made once, and runs on them."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.once import made_once
from training.ports import Example, Progress, TrainRun
from training.spec import TrainSpec
from training.tiny import base as tiny_base


class MemoryCheckpoints:
    """Checkpoints in a dictionary; keeps all."""

    def __init__(self) -> None:
        self.held: dict[int, bytes] = {}

    def steps(self) -> list[int]:
        return sorted(self.held)

    def load(self, step: int) -> bytes:
        return self.held[step]

    def save(self, step: int, data: bytes) -> None:
        self.held[step] = data

    def drop(self, step: int) -> None:
        """None goes: tests go back to any."""


class MemoryPreviews:
    """Previews in a dictionary."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, int], bytes] = {}

    def save(self, step: int, prompt: int, png: bytes) -> None:
        self.held[step, prompt] = png


class Watcher:
    """A control that notes reports, and raises `error` at a check once `stop_before` steps were reported."""

    def __init__(self, stop_before: int | None = None, error: Exception | None = None) -> None:
        self.reports: list[Progress] = []
        self.checks, self.stop_before, self.error = 0, stop_before, error

    def check(self) -> None:
        if self.error is not None and self.reports and self.reports[-1].step >= (self.stop_before or 0):
            raise self.error

    def report(self, progress: Progress) -> None:
        self.reports.append(progress)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes the tiny base model of a family, once."""

    def base(family: str = "sd15", prediction: str = "epsilon") -> Path:
        def make(folder: Path) -> None:
            tiny_base.make(folder, family, prediction=prediction)

        return made_once(tmp_path_factory, f"{family}-{prediction}", make)

    return base


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Example]]:
    """Draws small prepared pictures: a square on a ground, each its own colours; some wide, when asked."""
    folder = tmp_path_factory.mktemp("pictures")

    def draw(count: int = 5, wide: int = 0) -> list[Example]:
        made = []
        for number in range(count):
            chance = np.random.default_rng(number)
            width, height = (128, 64) if number < wide else (64, 64)
            values = np.empty((height, width, 3), np.uint8)
            values[:] = chance.integers(0, 256, 3)
            values[16:48, 16:48] = chance.integers(0, 256, 3)
            path = folder / f"{number}-{width}.png"
            if not path.exists():
                Image.fromarray(values).save(path)
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            made.append(Example(path, f"a photo of sks dog, number {number % 2}", sha256, width, height))
        return made

    return draw


@pytest.fixture
def runs(tmp_path: Path, bases: Callable[..., Path], pictures: Callable[..., list[Example]]) -> Callable[..., TrainRun]:
    """Builds a run on a tiny base: 64 px, 5 pictures, 6 steps unless said; spec fields by name."""

    def build(family: str = "sd15", *, wide: int = 0, count: int = 5, **given: Any) -> TrainRun:
        named = ("control", "checkpoints", "training_adapter", "slots", "precision", "quantise", "previews")
        kept = {name: given.pop(name) for name in named if name in given}
        name = given.pop("name", "lora")
        base = given.pop("base", None) or bases(family, given.pop("prediction", "epsilon"))
        every = given.pop("every", 10)
        recipe = {"rank": 4, "alpha": 32.0, "resolution": 64, "max_steps": 6, "seed": 7, "learning_rate": 1e-3, **given}
        spec = TrainSpec(base_model=str(base), family=family, trigger_word="sks dog", **recipe)
        return TrainRun(
            job_id=name,
            spec=spec,
            examples=pictures(count, wide),
            dataset_sha256="d" * 64,
            base_model=str(base),
            out=tmp_path / f"{name}.safetensors",
            checkpoints=kept.pop("checkpoints", MemoryCheckpoints()),
            control=kept.pop("control", Watcher()),
            device="cpu",
            checkpoint_every_epochs=every,
            **kept,
        )

    return build
