"""Whole trainings with pictures, checkpoints and files, as in a worker; several at once in threads."""

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

from benchmarks import training_recipes as recipes
from benchmarks.gpu.bench import setup
from benchmarks.gpu.cohorts import tiny
from core.errors import HandOver
from training.backends.local import train
from training.checkpoint_folder import FolderCheckpoints
from training.ports import Example, Progress, TrainResult, TrainRun
from training.spec import TrainSpec

lib: Any = diffusers  # its classes are untyped to the checker


class CutAfter(FolderCheckpoints):
    """Checkpoints in memory, and a control that hands the training over after a checkpoint of `step` or later."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder)
        self._step, self._is_due = step, False

    def save(self, step: int, data: bytes) -> None:
        super().save(step, data)
        self._is_due = step >= self._step

    def check(self) -> None:
        if self._is_due:
            raise HandOver

    def report(self, progress: Progress) -> None: ...


def run_of(
    family: str, name: str, *, base: Path | None = None, pixels: int = 64, every: int = 1, cut_after: int | None = None,
    deterministic: bool = False, slots: int = 0, pictures: int = 5, **recipe: Any,
) -> TrainRun:  # fmt: skip
    """A run on pictures of coarse colours; `base` is the tiny one where none is given.

    every: epochs between checkpoints. cut_after: hand over after a checkpoint of this step.
    """
    work, base = setup().work, base or tiny(family)
    asked = {"rank": 4, "alpha": 32.0, "max_steps": 6, "seed": 7, "learning_rate": 1e-3, **recipe}
    spec = TrainSpec(base_model=str(base), family=family, trigger_word="sks dog", resolution=pixels, **asked)
    folder = work / f"{name}.checkpoints"
    cut = None if cut_after is None else CutAfter(folder, cut_after)
    return TrainRun(
        name, spec, [_picture(number, pixels) for number in range(pictures)], "d" * 64, str(base),
        work / f"{name}.safetensors", cut or FolderCheckpoints(folder), cut or recipes.NoControl(), setup().device.type,
        checkpoint_every_epochs=every, encodings=work / "encodings", deterministic=deterministic, slots=slots,
    )  # fmt: skip


def _picture(number: int, pixels: int) -> Example:
    folder = setup().work / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number}-{pixels}.png"
    if not path.exists():
        values = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        temporary = folder / f".{number}-{pixels}-{os.getpid()}-{threading.get_ident()}.png"
        Image.fromarray(values).resize((pixels, pixels)).save(temporary)
        temporary.replace(path)
    return Example(path, "a photo of sks dog", hashlib.sha256(path.read_bytes()).hexdigest(), pixels, pixels)


def together(runs: Sequence[TrainRun], apart_s: float = 0.0) -> tuple[list[TrainResult], list[str], float]:
    """Train all runs, each in its own thread, started one after another; returns results, errors, and seconds."""
    found: dict[int, TrainResult | Exception] = {}

    def work(place: int, run: TrainRun) -> None:
        try:
            found[place] = train(run)
        except Exception as error:  # noqa: BLE001 - report each error and continue with the others
            found[place] = error

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(runs)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
        time.sleep(apart_s)
    for thread in threads:
        thread.join()
    took = time.monotonic() - begun
    results = [found[place] for place in range(len(runs))]
    failed = sorted({f"{type(one).__name__}: {str(one)[:200]}" for one in results if isinstance(one, Exception)})
    return [one for one in results if isinstance(one, TrainResult)], failed, took


def matrices_of(path: Path) -> torch.Tensor:
    """All tensors of a LoRA file as one vector."""
    values = load_file(path)
    return torch.from_numpy(np.concatenate([values[name].astype(np.float64).ravel() for name in sorted(values)]))


def full_base() -> tuple[Path, int]:
    """The folder of an sd15 of full size with random weights, made once, and its pixels; at tiny size the tiny one."""
    here = setup()
    if not here.is_full:
        return tiny("sd15"), 64
    folder = here.work / "full"
    if not (folder / "model_index.json").is_file():
        torch.manual_seed(0)
        recipes.save(folder, here.device)
    return folder, 512
