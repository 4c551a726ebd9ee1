"""The loop's edges: losses and memory that fail, progress, picture sizes, batches, the device."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.errors import BackendFailed, LossNotFinite, OutOfMemory, StoreUnavailable
from tests.servers.launcher import run
from tests.training.conftest import MemoryCheckpoints, Watcher
from training import device
from training.backends.local import train
from training.engine.cohorts.cohort import Cohort
from training.engine.randomness import SampleOrder
from training.ports import Example, TrainRun

Runs = Callable[..., TrainRun]
ROOT = Path(__file__).parents[2]  # `tests.site` needs Celery, which a GPU machine need not have


# ---- what ends a training ----------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_it_and_names_the_step(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Cohort.step

    def broken(self: Cohort) -> None:
        job = next(job for job in self.jobs if job is not None)
        if job.step == 3:
            self.stack.masters.data[0, -100:] = float("nan")
        step(self)

    monkeypatch.setattr(Cohort, "step", broken)
    kept = MemoryCheckpoints()
    run = runs(checkpoints=kept)
    with pytest.raises(LossNotFinite, match="step 4 of 6") as caught:
        train(run)
    assert caught.value.details == {"step": 4}
    assert kept.steps() == []
    assert not run.out.exists()


def test_weights_that_are_not_finite_are_never_kept(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Cohort.step

    def broken(self: Cohort) -> None:
        step(self)
        if self.jobs[0] is not None and self.jobs[0].step == 6:
            self.stack.masters.data[0, 0] = float("inf")

    monkeypatch.setattr(Cohort, "step", broken)
    kept = MemoryCheckpoints()
    with pytest.raises(LossNotFinite, match="weights after step 6"):
        train(runs(checkpoints=kept))
    assert kept.steps() == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_memory_that_runs_out(runs: Runs, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def starved(self: Cohort) -> None:
        raise error

    monkeypatch.setattr(Cohort, "step", starved)
    with pytest.raises(OutOfMemory, match="smaller batch or resolution"):
        train(runs())


def test_out_of_memory_goes_on_with_less(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer slots first, then activations are given up; the step and the result stay what they were."""
    whole = train(runs(name="whole"))
    step, seen = Cohort.step, []

    def starved(self: Cohort) -> None:
        state = len(self.jobs), self.base.denoiser.is_gradient_checkpointing
        seen.append(state)
        if len(seen) > 2 and state != (1, True):
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self)

    monkeypatch.setattr(Cohort, "step", starved)
    result = train(runs(name="starved", slots=4))
    assert seen == [(4, False)] * 3 + [(2, False), (1, False)] + [(1, True)] * 4
    assert result.final_loss == pytest.approx(whole.final_loss, rel=1e-4)

    def watched(self: Cohort) -> None:
        slots.append(len(self.jobs))
        step(self)

    slots: list[int] = []
    monkeypatch.setattr(Cohort, "step", watched)
    train(runs(name="next", slots=4))
    assert slots == [4] * 6, "what one training had to do without, the next one has again"


def test_a_file_that_cannot_be_written(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "lora.safetensors").mkdir()
    with pytest.raises(StoreUnavailable):
        train(runs())
    assert list(tmp_path.iterdir()) == [tmp_path / "lora.safetensors"]


# ---- progress ----------------------------------------------------------------------------------------------------


def test_progress_begins_at_once_ends_at_the_end_and_is_rare(runs: Runs) -> None:
    watcher = Watcher()
    result = train(runs(control=watcher, max_steps=8))
    steps = [report.step for report in watcher.reports]
    assert steps[0] == 1
    assert steps[-1] == 8
    assert len(steps) <= 2 + result.train_seconds
    assert watcher.reports[-1].seconds_left == 0
    assert all(report.total == 8 and report.loss > 0 for report in watcher.reports)
    assert result.steps == 8
    assert result.resumed_from == 0


# ---- which pictures, in which order ------------------------------------------------------------------------------


def example(number: int, width: int = 64) -> Example:
    return Example(Path(f"{number}.png"), "", str(number), width, 64)


def test_every_epoch_sees_every_picture_once_in_another_order() -> None:
    order = SampleOrder([example(number) for number in range(7)], 1, seed=3)
    epochs = [[order.batch(step)[0] for step in range(7 * epoch, 7 * epoch + 7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # A step's pictures do not depend on which steps were asked for before.
    assert SampleOrder([example(number) for number in range(7)], 1, seed=3).batch(17) == order.batch(17)


def test_batches_are_full_and_of_one_size() -> None:
    examples = [example(number, 128 if number < 3 else 64) for number in range(10)]
    order = SampleOrder(examples, 4, seed=0)
    assert order.steps_per_epoch == 3
    seen: Counter[int] = Counter()
    for step in range(30):
        batch = order.batch(step)
        assert len(batch) == 4
        assert len({examples[place].width for place in batch}) == 1
        seen.update(batch)
    assert set(seen) == set(range(10))


@pytest.mark.parametrize("family", ["sd15", "sdxl", "z-image"])
def test_mixed_sizes_and_batches_train(runs: Runs, family: str) -> None:
    result = train(runs(family, wide=2, count=6, batch_size=2, aspect_buckets=True))
    assert result.steps == 6
    assert result.metadata["ss_enable_bucket"] == "True"


# ---- the device --------------------------------------------------------------------------------------------------


def test_probe_says_what_there_is() -> None:
    report = device.probe("cpu")
    assert report.kind == "cpu"
    assert report.precision == "float32"
    assert report.memory_bytes > 2**28
    assert "product ok" in report.text
    assert report.to_dict()["kind"] == "cpu"


def test_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # also where there is one
    assert device.choose("auto").type == "cpu"
    assert "CUDA is not available" in device.probe().text
    with pytest.raises(BackendFailed, match="no usable CUDA"):
        device.choose("cuda")


@pytest.mark.gpu
def test_a_training_on_cuda(runs: Runs) -> None:
    from dataclasses import replace

    assert device.probe("cuda").kind == "cuda"
    for family in ("sd15", "sdxl", "z-image"):
        result = train(replace(runs(family, name=family), device="cuda"))
        assert result.device == "cuda"


@pytest.mark.gpu
def test_the_deterministic_mode_repeats_a_file_on_cuda(runs: Runs) -> None:
    from dataclasses import replace

    device.probe("cuda", deterministic=True)
    first, second = (
        train(replace(runs("sd15", name=name), device="cuda", deterministic=True, slots=2)) for name in ("one", "two")
    )
    assert first.sha256 == second.sha256


def test_no_operation_of_a_step_is_refused_as_not_repeatable(bases: Callable[..., Path], tmp_path: Path) -> None:
    # In a process of its own, since the mode cannot be taken back. torch refuses operations that have no exact form.
    program = tmp_path / "exactly.py"
    program.write_text(
        "import sys; from training.device import repeat_exactly; repeat_exactly(); "
        "from training.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    pictures = ROOT / "demo" / "pictures"
    done = run(
        [str(program), str(pictures), "--base-model", str(bases()), "--family", "sd15", "--trigger",
         "imp", "--resolution", "64", "--max-steps", "3", "--device", "cpu", "--out", str(tmp_path / "a.safetensors"),
         "--set", "adapter.dora=true", "--set", "adapter.targets=all"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, folder=tmp_path, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_large_base_is_in_bfloat16_where_a_cpu_has_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, large = torch.device("cpu"), device.LARGE_BYTES
    for has_units, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has_units: has)
        assert device.precision(cpu, large) is wanted
        assert device.precision(cpu, large - 1) is torch.float32
        assert device.precision(cpu, large, "float32") is torch.float32
        assert device.precision(cpu, 0, "bfloat16") is torch.bfloat16
