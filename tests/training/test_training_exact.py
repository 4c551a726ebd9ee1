"""A training that is killed, damaged, handed over or resumed ends with the same bytes as one that is left alone."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from core.errors import Cancelled, HandOver, LeaseLost, StoreUnavailable, TrainingTimeout
from tests.families import FLOWS
from tests.training.conftest import MemoryCheckpoints, Watcher
from training.backends.local import train
from training.ports import TrainRun

Runs = Callable[..., TrainRun]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report every step, so that a test can stop at any."""
    monkeypatch.setattr("training.backends.meter.REPORT_EVERY_S", 0.0)


def test_twice_the_same_bytes(runs: Runs) -> None:
    first, second = train(runs(name="a")), train(runs(name="b"))
    assert first.sha256 == second.sha256
    assert first.path.read_bytes() == second.path.read_bytes()
    assert train(runs(name="c", seed=8)).sha256 != first.sha256


@pytest.mark.parametrize("family", FLOWS)
def test_a_transformer_resumes_byte_identical(runs: Runs, family: str) -> None:
    kept = MemoryCheckpoints()
    run = runs(family, max_steps=4, every=1, count=2, checkpoints=kept)
    whole = train(run)
    del kept.held[4]
    resumed = train(run)
    assert (resumed.resumed_from, resumed.sha256) == (2, whole.sha256)


@pytest.mark.parametrize("damage", [None, "flipped", "cut", "foreign", "garbage"])
def test_resume_is_byte_identical(runs: Runs, damage: str | None) -> None:
    whole = train(runs(max_steps=12, every=1))
    kept = MemoryCheckpoints()
    straight = runs(max_steps=12, every=1, checkpoints=kept)
    train(straight)
    assert kept.steps() == [5, 10, 12]
    # As after a kill -9: the last checkpoint is gone or broken, the file was never written.
    del kept.held[12]
    newest = kept.held[10]
    if damage == "flipped":
        kept.held[10] = newest[:-7] + bytes([newest[-7] ^ 1]) + newest[-6:]
    elif damage == "cut":
        kept.held[10] = newest[: len(newest) // 2]
    elif damage == "garbage":
        kept.held[10] = b"\x80\x04not a checkpoint"
    elif damage == "foreign":
        other = MemoryCheckpoints()
        train(runs(name="other", max_steps=10, every=1, seed=99, checkpoints=other))
        kept.held[10] = other.held[10]
    straight.out.unlink()
    resumed = train(straight)
    assert resumed.resumed_from == (10 if damage is None else 5)
    assert resumed.sha256 == whole.sha256
    assert resumed.final_loss == whole.final_loss


def test_half_precision_resumes_exactly_and_stays_it(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    """A bfloat16 base with float32 masters, as on a GPU; on a machine that would not, a job goes on as it began."""
    kept = MemoryCheckpoints()
    run = runs(max_steps=12, every=1, checkpoints=kept, precision="bfloat16")
    whole = train(run)
    assert whole.sha256 != train(runs(name="single", max_steps=12)).sha256
    for asked in ("bfloat16", "auto"):
        kept.held = {step: data for step, data in kept.held.items() if step <= 5}
        resumed = train(replace(run, precision=asked))
        assert resumed.resumed_from == 5
        assert resumed.sha256 == whole.sha256
    kept.held = {step: data for step, data in kept.held.items() if step <= 5}
    assert train(replace(run, precision="float32")).resumed_from == 0
    assert "restarts: its checkpoint was trained in bfloat16, but float32 is requested" in caplog.text


@pytest.mark.usefixtures("quick")
def test_hand_over_checkpoints_at_the_step_it_is_at(runs: Runs) -> None:
    whole = train(runs(name="whole", max_steps=60))
    kept = MemoryCheckpoints()
    run = runs(name="part", max_steps=60, every=1000, checkpoints=kept, control=Watcher(4, HandOver()))
    with pytest.raises(HandOver):
        train(run)
    (at,) = kept.steps()
    assert 4 <= at < 60
    assert not run.out.exists()
    rest = train(replace(run, control=Watcher()))
    assert rest.resumed_from == at
    assert rest.sha256 == whole.sha256


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [Cancelled(), LeaseLost(), TrainingTimeout("too long")])
def test_other_stops_write_nothing(runs: Runs, error: Exception) -> None:
    kept = MemoryCheckpoints()
    run = runs(max_steps=1000, every=1000, checkpoints=kept, control=Watcher(3, error))
    with pytest.raises(type(error)):
        train(run)
    assert kept.steps() == []
    assert not run.out.exists()
    assert list(run.out.parent.iterdir()) == []


def test_a_finished_checkpoint_is_only_exported(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs()
    first = train(run)
    run.out.unlink()
    monkeypatch.setattr(
        "training.backends.local_training.LocalTraining.train", lambda self: pytest.fail("trained again")
    )
    again = train(run)
    assert again.sha256 == first.sha256
    assert again.resumed_from == 6
    assert again.train_seconds == 0.0


def test_a_store_that_fails_costs_no_training(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryCheckpoints):
        def steps(self) -> list[int]:
            raise StoreUnavailable("no answer")

        def save(self, step: int, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    whole = train(runs(name="whole"))
    broken = train(runs(name="broken", checkpoints=Broken(), every=1))
    assert broken.sha256 == whole.sha256
    assert "cannot be listed" in caplog.text
    assert "could not be saved" in caplog.text
