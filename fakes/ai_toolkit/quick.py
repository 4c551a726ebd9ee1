"""The quick trainer. It trains no network: weights depend on pictures and config, and steps on the clock."""

import hashlib
import json
import math
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from fakes.ai_toolkit.lora import family_of_config, serialize_toolkit_lora
from fakes.ai_toolkit.modules import modules_of
from fakes.ai_toolkit.options import FakeToolkitOptions
from fakes.ai_toolkit.task import DatasetItem, TrainerJob
from training.lora.safetensor import Array


def train_quickly(task: TrainerJob, options: FakeToolkitOptions) -> Iterator[None]:
    """A generator that trains a little on each iteration."""
    loaded_at = time.monotonic() + options.loading_s
    task.set_info("Loading model")
    yield
    while time.monotonic() < loaded_at:
        yield
    task.set_info("Loading dataset")
    items = task.items()
    task.log(f"Found {len(items)} images")
    seed = _digest(items, task)
    level = _contrast(items)
    yield
    task.set_info("Training")
    begun, first = time.monotonic(), task.step
    while task.step < task.total:
        due = first + int((time.monotonic() - begun) / max(options.seconds_per_step, 1e-6))
        step = min(due, task.total, _next_stop(task))
        if step == task.step:
            yield
            continue
        # A real trainer logs the losses of step 0 to the last but one, and only then counts the step.
        losses = [(number, _loss(seed, level, number, task.total)) for number in range(task.step, step)]
        task.advance(step, losses, options.seconds_per_step)
        if task.saves_at(step):
            task.set_info("Saving model")
            task.keep(serialize_toolkit_lora(task.process, task.name, _weights(task, seed, level), step=step), step)
        if task.draws_at(step):
            task.draw()
        task.set_info("Training")
        yield
    if first < task.total or not task.final.exists():  # a pitfall: if the file already exists, nothing is trained
        yield from _save(task, seed, level)
        task.draw()
    task.complete()


def _next_stop(task: TrainerJob) -> int:
    """The next step with a checkpoint or samples."""
    spans = (int(task.process["save"]["save_every"]), int(task.process["sample"]["sample_every"]))
    return min((task.step // span + 1) * span for span in spans)


def _save(task: TrainerJob, seed: bytes, level: float) -> Iterator[None]:
    """Write the finished file in place, so that for a while it is incomplete."""
    task.set_info("Saving model")
    data = serialize_toolkit_lora(task.process, task.name, _weights(task, seed, level), step=task.total)
    task.final.write_bytes(data[: len(data) // 2])
    yield
    task.final.write_bytes(data)
    task.saved_step = task.total


def _digest(items: list[DatasetItem], task: TrainerJob) -> bytes:
    """A hash of all pictures, captions and the config."""
    held = hashlib.sha256(json.dumps(dict(task.process), sort_keys=True).encode())
    for item in items:
        held.update(item.path.read_bytes())
        held.update(item.caption.encode())
    return held.digest()


def _contrast(items: list[DatasetItem]) -> float:
    """The mean contrast of the pictures, 0 to 1."""
    spreads = []
    for item in items[:8]:
        with Image.open(item.path) as picture:
            spreads.append(float(np.asarray(picture.convert("L").resize((32, 32)), np.float32).std()) / 128)
    return min(1.0, sum(spreads) / len(spreads))


def _weights(task: TrainerJob, seed: bytes, level: float) -> dict[str, tuple[Array, Array]]:
    """Down and up of every module that the job trains: noise from the seed, scaled by contrast and progress."""
    network, chance = task.process["network"], np.random.default_rng(list(seed))
    rank, share = int(network["linear"]), task.step / task.total if task.total else 1.0
    made = {}
    for module, (inputs, outputs) in modules_of(family_of_config(task.process), network).items():
        down = chance.random((rank, inputs), np.float32) * 2 * inputs**-0.5 - inputs**-0.5
        up = chance.standard_normal((outputs, rank), np.float32) * np.float32(0.01 * (0.1 + level) * share)
        made[module] = (down.astype(np.float32), up)
    return made


def _loss(seed: bytes, level: float, step: int, total: int) -> float:
    """A noisy loss that falls from about 0.2 to 0.05."""
    chance = np.random.default_rng([*seed[:8], step])
    return float((0.05 + (0.1 + 0.1 * level) * math.exp(-3 * step / total)) * (1 + 0.2 * chance.standard_normal()))
