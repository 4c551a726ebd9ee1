"""Several jobs in one step: peft is the oracle for one, and each of many is what it would be beside anybody else."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from core.errors import Cancelled, HandOver, ImprintError, LossNotFinite, Stop
from tests.families import LOCAL
from tests.training.conftest import MemoryCheckpoints, Watcher
from tests.training.live import Live, meet, wait_until_gone
from training import families
from training.backends import resident
from training.backends.local import train
from training.backends.local_training import LocalTraining
from training.engine.cohorts import assignment
from training.engine.cohorts.cohort import Cohort
from training.engine.engine import Engine
from training.engine.objective import errors
from training.families.family import Base, Where
from training.ports import TrainResult, TrainRun

Runs = Callable[..., TrainRun]
CPU = torch.device("cpu")


def base_of(run: TrainRun) -> Base:
    return families.find(run.spec.family).load(Where(Path(run.base_model), CPU, torch.float32))


def side_by_side(*runs: TrainRun) -> list[TrainResult | BaseException]:
    """Train all at once, each from a thread of its own; what each gave or raised."""
    found: dict[int, TrainResult | BaseException] = {}

    def work(place: int, run: TrainRun) -> None:
        try:
            found[place] = train(run)
        except (ImprintError, Stop) as error:
            found[place] = error

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[place] for place in range(len(runs))]


# ---- one job is what peft would make of it -----------------------------------------------------------------------


PEFT = [("sd15", "convolutions"), *((name, "attention") for name in LOCAL)]


@pytest.mark.parametrize(("family", "targets"), PEFT)
def test_loss_and_gradients_are_those_of_peft(runs: Runs, family: str, targets: str) -> None:
    run, found = runs(family, rank=3, alpha=5.0, adapter={"targets": targets}), families.find(family)
    live = Live(run, found, base_of(run))
    for _ in range(2):
        live.step()  # so that B is not zero
    weights = live.cohort.snapshot(live.job).weights
    [lot], _ = live.cohort.gather()

    oracle = base_of(run)
    config = LoraConfig(r=3, lora_alpha=5.0, target_modules=found.targets[targets], lora_dropout=0.0)  # type: ignore[arg-type]
    oracle.denoiser.add_adapter(config)
    layers = {name: module for name, module in oracle.denoiser.named_modules() if hasattr(module, "lora_A")}
    assert sorted(layers) == sorted(site.name for site in live.cohort.layout.sites)
    for name, layer in layers.items():
        layer.lora_A["default"].weight.data.copy_(torch.from_numpy(weights[f"{name}.down"]))
        layer.lora_B["default"].weight.data.copy_(torch.from_numpy(weights[f"{name}.up"]))
    wanted = errors(found, oracle, lot.made, lot.conditions).mean()
    wanted.backward()

    got, gradients = live.gradients(lot)
    assert got == pytest.approx(wanted.item(), rel=1e-6)
    for name, layer in layers.items():
        for end, held in (("down", layer.lora_A), ("up", layer.lora_B)):
            weight = held["default"].weight
            # The text stream of Qwen-Image's last block goes nowhere.
            peft = np.zeros(weight.shape, np.float32) if weight.grad is None else weight.grad.numpy()
            assert np.abs(gradients[f"{name}.{end}"] - peft).max() <= 1e-5 * np.abs(peft).max() + 1e-9, name


# ---- one among many -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "targets"), [("sd15", "attention"), ("sdxl", "attention"), ("sd15", "convolutions")]
)
def test_a_jobs_bytes_do_not_depend_on_its_neighbours(runs: Runs, family: str, targets: str) -> None:
    """Alone in four slots, among three of other ranks, rates and lengths, and in whichever slot: the same file."""
    all_have: dict[str, Any] = {"slots": 4, "adapter": {"targets": targets}}
    mine: dict[str, Any] = {**all_have, "seed": 11, "max_steps": 9}
    alone = train(runs(family, name="alone", **mine))
    others = [
        runs(
            family, name=f"other{n}", seed=n, rank=n + 1, alpha=7.0, learning_rate=10.0**-n, max_steps=4 * n,
            **all_have,
        )
        for n in (1, 2, 3)
    ]  # fmt: skip
    first, *_ = side_by_side(runs(family, name="first", **mine), *others)
    *_, last = side_by_side(*others, runs(family, name="last", **mine))
    assert isinstance(first, TrainResult)
    assert isinstance(last, TrainResult)
    assert first.sha256 == last.sha256 == alone.sha256


def test_jobs_are_stepped_together(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    step = Cohort.step

    def counted(self: Cohort) -> None:
        seen.append(len(self))
        step(self)

    monkeypatch.setattr(Cohort, "step", counted)
    meet(monkeypatch, 4)
    results = side_by_side(*(runs(name=str(n), seed=n, slots=4, max_steps=60) for n in range(4)))
    assert all(isinstance(result, TrainResult) for result in results)
    assert max(seen) == 4
    assert len(seen) < 4 * 60


def test_more_jobs_than_slots_wait_and_all_end(runs: Runs) -> None:
    results = side_by_side(*(runs(name=str(n), seed=n, slots=2, max_steps=10 + n) for n in range(5)))
    assert [result.steps for result in results if isinstance(result, TrainResult)] == [10, 11, 12, 13, 14]


def test_across_slot_shapes_gradients_agree(runs: Runs) -> None:
    gradients = []
    for slots in (1, 2, 8):
        run, found = runs(seed=5), families.find("sd15")
        live = Live(run, found, base_of(run), slots=slots)
        live.step()
        live.cohort.stack.step = lambda: None  # type: ignore[method-assign]
        live.step()
        gradients.append(live.cohort.stack.masters.grad[0])  # type: ignore[index]
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() < 1e-5 * gradients[0].norm()


def test_a_job_that_fails_or_leaves_changes_no_other(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.backends.meter.REPORT_EVERY_S", 0.0)  # so that two leave after their third step
    mine: dict[str, Any] = {"slots": 4, "seed": 11, "max_steps": 30}
    alone = train(runs(name="alone", **mine))
    kept = MemoryCheckpoints()
    broken, cancelled, handed, beside = side_by_side(
        runs(name="broken", slots=4, learning_rate=1e-1, alpha=1024.0, max_steps=120),
        runs(name="cancelled", slots=4, seed=2, max_steps=10_000, control=Watcher(3, Cancelled())),
        runs(name="handed", slots=4, seed=3, max_steps=10_000, checkpoints=kept, control=Watcher(3, HandOver())),
        runs(name="beside", **mine),
    )
    assert isinstance(broken, LossNotFinite)
    assert isinstance(cancelled, Cancelled)
    assert isinstance(handed, HandOver)
    assert kept.steps()
    assert isinstance(beside, TrainResult)
    assert beside.sha256 == alone.sha256


def test_a_cohort_that_was_killed_goes_on_byte_identical(runs: Runs) -> None:
    """Four jobs, all their processes' memory gone, resumed from what was kept, beside each other or others."""
    whole = side_by_side(*(runs(name=f"w{n}", seed=n, slots=4, max_steps=20, every=1) for n in range(4)))
    stores = [MemoryCheckpoints() for _ in range(4)]
    cut = [runs(name=f"c{n}", seed=n, slots=4, max_steps=20, every=1, checkpoints=stores[n]) for n in range(4)]
    side_by_side(*cut)
    for number, store in enumerate(stores):  # each was killed at another step
        store.held = {step: data for step, data in store.held.items() if step <= 5 * (number % 3 + 1)}
    resident._resident = None
    again = side_by_side(*(replace(run, out=run.out.with_name(f"again-{run.job_id}")) for run in reversed(cut)))
    for before, after in zip(whole, reversed(again), strict=True):
        assert isinstance(before, TrainResult)
        assert isinstance(after, TrainResult)
        assert after.resumed_from > 0
        assert after.sha256 == before.sha256


def test_on_a_cpu_with_several_threads_a_slot_is_as_good_as_another(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads divide the four rows of a small product between them, and a kernel sums two rows in its own order."""
    before = torch.get_num_threads()
    monkeypatch.setattr(assignment, "THREADS", 2)
    torch.set_num_threads(2)
    try:
        learnt = set()
        for place in range(4):
            mine = runs(name="mine", seed=11, slots=4)
            many = [mine if n == place else runs(name=f"o{n}", seed=n, slots=4) for n in range(4)]
            engine = Engine(families.find("sd15"), base_of(mine))
            trainings = [LocalTraining(run, engine, {"base": ""}, 6, None) for run in many]
            with engine.paused():
                for training in trainings:
                    engine.join(training.job)
            for training in trainings:
                wait_until_gone(training.job)
            state = trainings[place].job.snapshots[-1].state()
            learnt.add(b"".join(weights.tobytes() for weights in state.weights.values()))
            engine.close()
        assert len(learnt) == 1
    finally:
        torch.set_num_threads(before)
