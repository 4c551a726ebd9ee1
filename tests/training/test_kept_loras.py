"""LoRA files of checkpoints: each is what a training of so many steps delivers, and every one that is due is kept."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.training.conftest import MemoryCheckpoints
from training.backends.local import train
from training.lora import file as lora_file
from training.lora.safetensor import unpack
from training.ports import TrainRun

Runs = Callable[..., TrainRun]


class MemoryLoras:
    """A LoraStore in memory; `broken` fails as a full disk does."""

    def __init__(self, *, broken: bool = False) -> None:
        self.held: dict[int, bytes] = {}
        self._broken = broken

    def save(self, step: int, data: bytes) -> None:
        if self._broken:
            raise OSError(28, "No space left on device")
        self.held[step] = data


def test_each_is_what_a_shorter_training_delivers(runs: Runs) -> None:
    loras = MemoryLoras()
    run = replace(runs(name="long", max_steps=20, every=1), loras=loras)
    whole = train(run)
    epoch = min(loras.held)
    assert sorted(loras.held) == list(range(epoch, 20, epoch)), "all but the last, which is the file itself"
    short = train(runs(name="short", max_steps=2 * epoch))
    wanted, made = unpack(short.path.read_bytes())[0], unpack(loras.held[2 * epoch])[0]
    assert wanted.keys() == made.keys()
    assert all(np.array_equal(wanted[name].elements, made[name].elements) for name in wanted)
    for data in loras.held.values():
        lora_file.check_lora_file(data, family=run.spec.family, rank=run.spec.rank)
    assert train(runs(name="plain", max_steps=20)).sha256 == whole.sha256, "keeping them changes nothing"


def test_a_resumed_training_keeps_the_same_files(runs: Runs) -> None:
    first, second, kept = MemoryLoras(), MemoryLoras(), MemoryCheckpoints()
    run = replace(runs(max_steps=20, every=1, checkpoints=kept), loras=first)
    train(run)
    start = sorted(first.held)[1]
    kept.held = {step: data for step, data in kept.held.items() if step <= start}
    resumed = train(replace(run, loras=second))
    assert second.held == {step: data for step, data in first.held.items() if step > resumed.resumed_from}


def test_a_store_that_fails_costs_no_training(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    run = runs(max_steps=20, every=1)
    assert train(replace(run, loras=MemoryLoras(broken=True))).steps == 20
    assert "the LoRA file of step" in caplog.text
