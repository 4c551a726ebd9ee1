"""How far a cohort grows is learnt from the time of its steps, and remembered."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.test_engine import side_by_side
from training.backends import resident
from training.backends.local_training import LocalTraining
from training.engine.cohorts.cohort import Cohort
from training.engine.cohorts.slot_ladder import FILE, SlotLadder
from training.ports import TrainResult, TrainRun

Runs = Callable[..., TrainRun]
CPU = torch.device("cpu")


def teach(ladder: SlotLadder, shape: str, seconds: dict[int, float], folder: Path | None) -> None:
    for slots, took in seconds.items():
        for _ in range(30):
            ladder.note(shape, slots, took, folder)


def test_the_ladder_ends_where_more_slots_train_no_more(tmp_path: Path) -> None:
    ladder = SlotLadder("base", CPU)
    assert ladder.pays("shape", 2)
    teach(ladder, "shape", {1: 0.010, 2: 0.012, 4: 0.020, 8: 0.039}, tmp_path)
    assert [ladder.pays("shape", slots) for slots in (2, 4, 8)] == [True, True, False]
    assert ladder.pays("shape", 16), "not known"
    assert ladder.pays("another", 8)


def test_what_was_found_is_there_for_the_next_worker(tmp_path: Path) -> None:
    teach(SlotLadder("base", CPU), "shape", {1: 1.0, 2: 2.0}, tmp_path)
    teach(SlotLadder("other", CPU), "shape", {1: 1.0, 2: 1.0}, tmp_path)
    for base, pays in (("base", False), ("other", True), ("third", True)):
        again = SlotLadder(base, CPU)
        again.load(tmp_path)
        assert again.pays("shape", 2) is pays


@pytest.mark.parametrize("content", ["", "[]", "{not json"])
def test_a_file_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    ladder = SlotLadder("base", CPU)
    ladder.load(tmp_path)
    assert ladder.pays("shape", 2)


def test_a_cohort_grows_no_further_than_pays(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: slots follow the jobs, up to what is known to pay; a later job waits and is trained too."""
    made, seen = LocalTraining.__init__, set()
    step = Cohort.step

    def growing(self: LocalTraining, *given: object) -> None:
        made(self, *given)  # type: ignore[arg-type]
        self.job.is_fixed = False

    def counted(self: Cohort) -> None:
        seen.add(len(self.jobs))
        step(self)

    monkeypatch.setattr(LocalTraining, "__init__", growing)
    monkeypatch.setattr(Cohort, "step", counted)
    monkeypatch.setattr(SlotLadder, "pays", lambda self, shape, slots: slots <= 2)
    resident._resident = None
    many = [replace(runs(name=str(n), seed=n, slots=8, max_steps=30), encodings=tmp_path / "kept") for n in range(4)]
    assert all(isinstance(result, TrainResult) for result in side_by_side(*many))
    assert seen <= {1, 2}
    assert (tmp_path / "kept" / FILE).is_file()
