"""A drawing and trainings on one device of a worker: the drawing has it alone, and changes no bit of the trainings."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import Cancelled, OutOfMemory
from tests.training.conftest import Watcher
from training.backends import resident
from training.backends.drawing import DrawingOrder, PictureOrder, draw_pictures
from training.backends.local import train
from training.ports import Progress, TrainRun

Runs = Callable[..., TrainRun]


class Gate(Watcher):
    """Notes steps, and tells when the first ones are done."""

    def __init__(self) -> None:
        super().__init__()
        self.trains = threading.Event()

    def report(self, progress: Progress) -> None:
        super().report(progress)
        if progress.step >= 2:
            self.trains.set()


@pytest.fixture
def order(runs: Runs, bases: Callable[..., Path]) -> DrawingOrder:
    run = runs(name="drawn", max_steps=2)
    train(run)
    pictures = [PictureOrder(0, 3, 1.0), PictureOrder(1, 3, 0.0)]
    return DrawingOrder(str(bases()), "sd15", run.out, "sks dog", pictures, 4, 2.0, (64, 64), "cpu")


def draw(order: DrawingOrder, on_step: Callable[[], None] = lambda: None) -> tuple[dict[int, bytes], bool]:
    """The pictures by number, and whether trainings waited."""
    made: dict[int, bytes] = {}
    waited = draw_pictures(order, lambda: None, on_step, made.__setitem__)
    return made, waited


def test_a_training_waits_and_writes_the_same_file(
    runs: Runs, order: DrawingOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.backends.meter.REPORT_EVERY_S", 0.0)  # so that it is drawn after the first steps
    alone, was_awaited = draw(order)
    assert not was_awaited
    undisturbed = runs(name="a", max_steps=50)
    train(undisturbed)
    control = Gate()
    disturbed = runs(name="a", max_steps=50, control=control)
    disturbed.out.unlink()
    thread = threading.Thread(target=train, args=(disturbed,))
    thread.start()
    assert control.trains.wait(60)
    seen: list[tuple[int, bool]] = []

    def look() -> None:
        engine = resident._resident.engine if resident._resident else None
        assert engine is not None
        seen.append((engine._cohorts.jobs[0].step, engine._is_stepping))

    made, was_awaited = draw(order, look)
    thread.join(120)
    assert was_awaited
    assert made == alone, "the same pictures as without a training beside"
    assert made[0] != made[1]
    assert len(set(seen)) == 1, "no step was done while it drew"
    assert seen[0][1] is False
    assert disturbed.out.read_bytes() == undisturbed.out.read_bytes()


def test_a_training_that_begins_while_pictures_are_drawn_waits_for_them(runs: Runs, order: DrawingOrder) -> None:
    control, run = Gate(), runs(name="late", max_steps=3)
    thread = threading.Thread(target=train, args=(run,))
    steps = 0

    def begin() -> None:
        nonlocal steps
        steps += 1
        if steps == 1:
            thread.start()
        assert not control.reports

    draw(order, begin)
    thread.join(120)
    assert run.out.exists()


@pytest.mark.parametrize("error", [MemoryError(), Cancelled("the owner cancelled"), RuntimeError("a bug")])
def test_whatever_ends_a_drawing_trainings_and_drawings_go_on(
    runs: Runs, order: DrawingOrder, error: Exception
) -> None:
    def fail() -> None:
        raise error

    kind: Any = OutOfMemory if isinstance(error, MemoryError) else type(error)
    with pytest.raises(kind):
        draw(order, fail)
    assert (resident._is_whole, resident._uses) == (False, 0)
    train(runs(name="after", max_steps=2))
    assert len(draw(order)[0]) == 2


def test_a_drawing_that_waits_for_a_training_to_load_can_be_cancelled(order: DrawingOrder) -> None:
    def cancelled() -> None:
        raise Cancelled("the owner cancelled")

    with resident.device_use(lambda: None), pytest.raises(Cancelled):
        draw_pictures(order, cancelled, lambda: None, lambda *_: None)
    assert resident._is_whole is False
