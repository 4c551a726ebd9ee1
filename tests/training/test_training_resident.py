"""A base model that stays loaded changes nothing but the time: the files are those of a cold start, byte for byte."""

import gc
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import LossNotFinite
from tests.samples import FULL
from training.backends import resident
from training.backends.local import train
from training.engine.cohorts.cohort import Cohort
from training.ports import TrainRun

Runs = Callable[..., TrainRun]
COUNT = 100 if FULL else 15  # base models; each takes 0.4 s


def cold() -> None:
    resident._resident = None


@pytest.mark.parametrize("family", ["sd15", "z-image"])
def test_a_warm_start_gives_the_same_file(runs: Runs, family: str) -> None:
    cold()
    first = train(runs(family, seed=3)).sha256
    base = resident._resident
    assert base is not None
    # Others in between, of the same shape and of another one.
    train(runs(family, seed=4))
    train(runs(family, seed=4, rank=2, alpha=3.0))
    assert train(runs(family, seed=3)).sha256 == first
    assert resident._resident is base, "the base was loaded again"


def test_another_base_takes_its_place(runs: Runs) -> None:
    train(runs("sd15"))
    train(runs("sdxl"))
    assert resident._resident is not None
    assert resident._resident.key[0] == "sdxl"


def test_of_many_base_models_only_the_last_one_stays(runs: Runs, bases: Callable[..., Path], tmp_path: Path) -> None:
    engines = []
    held: list[tuple[int, int, int]] = []
    for number in range(COUNT):
        base = tmp_path / f"base-{number}"
        shutil.copytree(bases("sd15"), base, copy_function=os.link)
        train(runs("sd15", base=base, count=1, max_steps=1))
        assert resident._resident is not None
        engines.append(weakref.ref(resident._resident.engine))
        if number in (9, COUNT - 1):  # what is set up once is there after ten
            gc.collect()
            alive = [engine for engine in engines if engine() is not None]
            held.append((len(alive), threading.active_count(), len(list(Path("/dev/fd").iterdir()))))
    assert held[0] == held[1]
    assert held[1][0] == 1


def test_a_base_is_kept_after_a_job_that_failed_but_not_after_an_error_of_its_own(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold()
    step = Cohort.step

    def broken(self: Cohort) -> None:
        self.stack.masters.data[0, -100:] = float("nan")
        step(self)

    monkeypatch.setattr(Cohort, "step", broken)
    with pytest.raises(LossNotFinite):
        train(runs("sd15"))
    assert resident._resident is not None
    monkeypatch.setattr(Cohort, "step", lambda self: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        train(runs("sd15"))
    assert resident._resident is None
