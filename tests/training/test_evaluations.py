"""Previews and validation between the steps of the training: nothing waits for a whole evaluation, and nothing of it
changes a bit.
"""

import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch

from core.errors import Cancelled, DeviceLost, HandOver
from tests.samples import sample
from tests.training.conftest import MemoryCheckpoints, MemoryPreviews, Watcher
from tests.training.live import Live, wait_until_gone
from tests.training.test_engine import base_of
from training import device_failure, families
from training.backends import checkpoint
from training.backends.local_training import LocalTraining
from training.engine.cohorts.cohort import Cohort
from training.engine.cohorts.slot_job import SlotJob
from training.engine.engine import Engine
from training.engine.evaluation import evaluations
from training.engine.evaluation.evaluations import Evaluation
from training.engine.evaluation.validation import LEVELS, draw_previews, validation_loss
from training.families.family import Base
from training.ports import TrainRun

Runs = Callable[..., TrainRun]
Engines = Callable[[TrainRun], Engine]
Result = TypeVar("Result")

# Five pictures are trained on: evaluated after steps 5 and 10. One takes 8 units to measure and 4 to draw.
BOTH: dict[str, Any] = {
    "count": 6,
    "every": 1,
    "slots": 2,
    "max_steps": 10,
    "learning_rate": 1e-2,
    "validation": {"held_out": 1, "every_epochs": 1, "previews": ["sks dog"]},
}
DRAWING = 4  # steps to draw a preview in, instead of 20
UNITS = LEVELS + DRAWING


class Events:
    """What the engine did, in order: ("step", {job: steps done}) and ("unit", job, step of the evaluation)."""

    def __init__(self) -> None:
        self.all: list[tuple[Any, ...]] = []
        self.at_unit: Callable[[Evaluation], None] = lambda _: None  # called before each unit

    @property
    def units(self) -> list[tuple[str, int]]:
        return [event[1:] for event in self.all if event[0] == "unit"]

    def during(self, job: str, step: int) -> list[dict[str, int]]:
        """The training steps between the first and the last unit of one evaluation."""
        places = [place for place, event in enumerate(self.all) if event == ("unit", job, step)]
        assert len(places) == UNITS
        return [event[1] for event in self.all[places[0] : places[-1]] if event[0] == "step"]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    seen, step, advance = Events(), Cohort.step, Evaluation.advance

    def stepped(self: Cohort) -> None:
        step(self)
        seen.all.append(("step", {job.run.job_id: job.step for job in self.jobs if job is not None}))

    def advanced(self: Evaluation) -> bool:
        if getattr(self, "is_begun", False):
            seen.all.append(("unit", self.job.run.job_id, self.step))
            seen.at_unit(self)
        self.is_begun = True  # type: ignore[attr-defined]
        return advance(self)

    monkeypatch.setattr(Cohort, "step", stepped)
    monkeypatch.setattr(Evaluation, "advance", advanced)
    return seen


@pytest.fixture
def engines(events: Events) -> Iterator[Engines]:
    """Makes engines on the tiny base of sd15 that draw in few steps; all are closed at the end."""
    made = []

    def make(run: TrainRun) -> Engine:
        base = base_of(run)
        base.drawing = (DRAWING, 5.0)
        made.append(Engine(families.find(run.spec.family), base))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def training_of(run: TrainRun, engine: Engine) -> LocalTraining:
    """A training that goes on from what the run has kept."""
    identity, total = {"base": ""}, run.spec.max_steps or 0
    return LocalTraining(run, engine, identity, total, checkpoint.load_latest(run.checkpoints, identity, total))


def together(engine: Engine, *runs: TrainRun) -> list[SlotJob]:
    """Train all in one cohort from the first step on; their jobs when they have ended."""
    trainings = [training_of(run, engine) for run in runs]
    with engine.paused():
        for one in trainings:
            engine.join(one.job)
    for one in trainings:
        wait_until_gone(one.job)
        if one.job.error is None:
            one._process_results()
    return [one.job for one in trainings]


def kept(run: TrainRun) -> dict[int, bytes]:
    assert isinstance(run.checkpoints, MemoryCheckpoints)
    return run.checkpoints.held


def pictures(run: TrainRun) -> dict[tuple[int, int], bytes]:
    assert isinstance(run.previews, MemoryPreviews)
    return run.previews.held


def again(run: TrainRun) -> TrainRun:
    """The same run with nothing kept."""
    previews = None if run.previews is None else MemoryPreviews()
    return replace(run, checkpoints=MemoryCheckpoints(), previews=previews, out=run.out.with_name("again.safetensors"))


# ---- nothing waits ------------------------------------------------------------------------------------------------


def test_a_neighbour_steps_between_the_units_of_an_evaluation(runs: Runs, events: Events, engines: Engines) -> None:
    evaluated = runs(name="evaluated", previews=MemoryPreviews(), **BOTH)
    beside = runs(name="beside", slots=2, seed=3, every=1, max_steps=40)
    engine = engines(evaluated)
    together(engine, evaluated, beside)
    for step in (5, 10):
        passed = [done["beside"] for done in events.during("evaluated", step)]
        assert passed == list(range(passed[0], passed[0] + UNITS - 1)), "one step between two units, each time"
    went_on = [done["evaluated"] for done in events.during("evaluated", 5)]
    assert went_on[:5] == [6, 7, 8, 9, 10], "the job itself goes on"
    assert set(went_on[5:]) == {10}, "until its next evaluation is due"

    alone, beside_alone = again(evaluated), again(beside)
    together(engine, alone)
    together(engine, beside_alone)
    assert sorted(pictures(evaluated)) == [(5, 0), (10, 0)]
    assert pictures(evaluated) == pictures(alone)
    assert kept(evaluated) == kept(alone)
    assert kept(beside) == kept(beside_alone)


@pytest.mark.parametrize("optimizer", sample(["adamw", "adamw8bit", "prodigy"], 1, "held jobs"))
def test_a_job_that_is_held_and_its_neighbour_keep_every_bit(
    runs: Runs, events: Events, engines: Engines, optimizer: str
) -> None:
    """`patience` may end it at the step that is measured, so it waits for the measurement."""
    options: dict[str, Any] = {"optimizer": optimizer, "optimization": {"ema_decay": 0.9}}
    if optimizer == "prodigy":
        options["learning_rate"] = 1.0
    asked = {"validation": {"held_out": 1, "every_epochs": 1, "patience": 50}, "max_steps": 6}
    evaluated = runs(name="evaluated", **BOTH | options | asked)
    beside = runs(name="beside", slots=2, seed=3, every=1, max_steps=20, **options)
    engine = engines(evaluated)
    together(engine, evaluated, beside)
    steps = [event[1] for event in events.all if event[0] == "step"]
    # Its own fifth step, and those of the neighbour while it waits.
    assert [done.get("evaluated") for done in steps].count(5) == LEVELS
    assert len(steps) == 20
    for run in (evaluated, beside):
        alone = again(run)
        together(engine, alone)
        assert kept(run) == kept(alone)


def test_evaluations_of_several_jobs_go_on_side_by_side(runs: Runs, events: Events, engines: Engines) -> None:
    many = [runs(name=str(n), seed=n, previews=MemoryPreviews(), **BOTH | {"max_steps": 5}) for n in range(2)]
    together(engines(many[0]), *many)
    assert events.units == [("0", 5), ("1", 5)] * UNITS


@pytest.mark.parametrize("most", [evaluations.MAX_HELD_BACK, 1])
def test_no_checkpoint_is_lost_behind_an_evaluation(
    runs: Runs, events: Events, engines: Engines, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(evaluations, "MAX_HELD_BACK", most)
    asked = {"held_out": 1, "every_epochs": 2, "previews": ["sks dog"]}
    evaluated = runs(name="evaluated", previews=MemoryPreviews(), **BOTH | {"validation": asked, "max_steps": 20})
    together(engines(evaluated), evaluated)
    assert sorted(kept(evaluated)) == [5, 10, 15, 20]
    went_on = [done["evaluated"] for done in events.during("evaluated", 10)]
    assert went_on == ([] if most == 1 else list(range(11, 21))), "without room for more the job waits"


# ---- leaving in the middle ----------------------------------------------------------------------------------------


class Stopping(Watcher):
    """Raises `error` once the third unit of the evaluation after step 5 has begun, which waits for the job to leave."""

    def __init__(self, error: Exception, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.reached, self.left = threading.Event(), threading.Event()
        self.stop = error
        leave = Engine.leave

        def leaving(engine: Engine, job: SlotJob, **options: Any) -> None:
            leave(engine, job, **options)
            self.left.set()

        def wait(evaluation: Evaluation) -> None:
            if events.units.count((evaluation.job.run.job_id, 5)) == 3:
                self.reached.set()
                assert self.left.wait(60)

        monkeypatch.setattr(Engine, "leave", leaving)
        events.at_unit = wait

    def check(self) -> None:
        if self.reached.is_set():
            raise self.stop


class CountedPreviews(MemoryPreviews):
    def __init__(self) -> None:
        super().__init__()
        self.saved: list[tuple[int, int]] = []

    def save(self, step: int, prompt: int, png: bytes) -> None:
        super().save(step, prompt, png)
        self.saved.append((step, prompt))


def test_handed_over_in_the_middle_it_is_finished_first(
    runs: Runs, events: Events, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runs(name="whole", previews=MemoryPreviews(), **BOTH)
    engine = engines(whole)
    together(engine, whole)
    events.all.clear()
    previews = CountedPreviews()
    cut = replace(again(whole), previews=previews, control=Stopping(HandOver(), events, monkeypatch))
    with pytest.raises(HandOver):
        training_of(cut, engine).train()
    assert events.units == [("whole", 5)] * UNITS
    assert previews.saved == [(5, 0)]
    assert max(kept(cut)) == 7, "the job had gone on for two steps, which are not lost"
    resumed = training_of(replace(cut, control=Watcher()), engine)
    resumed.train()
    assert resumed.job.start == 7
    assert previews.saved == [(5, 0), (10, 0)], "nothing is lost, and nothing drawn twice"
    assert previews.held == pictures(whole)
    assert kept(cut)[10] == kept(whole)[10]


def test_cancelled_in_the_middle_it_is_dropped(
    runs: Runs, events: Events, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = runs(name="cut", previews=MemoryPreviews(), control=Stopping(Cancelled(), events, monkeypatch), **BOTH)
    with pytest.raises(Cancelled):
        training_of(cut, engines(cut)).train()
    assert len(events.units) == 3
    assert not pictures(cut)
    assert not kept(cut)


def test_killed_in_the_middle_it_is_done_again(
    runs: Runs, events: Events, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint from step 10 on is kept before the evaluation after step 10 is finished."""
    monkeypatch.setattr(device_failure, "_listeners", [])
    whole = runs(name="whole", previews=MemoryPreviews(), **BOTH | {"max_steps": 12})
    together(engines(whole), whole)
    events.all.clear()
    cut = again(whole)

    def lost(evaluation: Evaluation) -> None:
        assert all(step < evaluation.step for step in kept(cut)), "a process that dies now evaluates again"
        if events.units.count(("whole", 10)) == 5:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    events.at_unit = lost
    with pytest.raises(DeviceLost):
        training_of(cut, engines(cut)).train()
    events.at_unit = lambda _: None
    assert max(kept(cut), default=0) <= 5
    training_of(cut, engines(cut)).train()
    assert pictures(cut) == pictures(whole)
    assert kept(cut) == kept(whole)


# ---- memory that runs out -----------------------------------------------------------------------------------------


def out_of_memory(events: Events, times: int) -> None:
    left = [None] * times

    def starved(evaluation: Evaluation) -> None:
        if len(events.units) > LEVELS + 2 and left:
            left.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")

    events.at_unit = starved


def test_out_of_memory_in_a_unit_is_tried_again(runs: Runs, events: Events, engines: Engines) -> None:
    evaluated = runs(name="evaluated", previews=MemoryPreviews(), **BOTH)
    engine = engines(evaluated)
    out_of_memory(events, 1)
    [job] = together(engine, evaluated)
    assert job.error is None
    alone = again(evaluated)
    together(engine, alone)
    assert pictures(evaluated) == pictures(alone)
    assert kept(evaluated) == kept(alone)


def test_out_of_memory_that_stays_ends_the_job_alone(runs: Runs, events: Events, engines: Engines) -> None:
    evaluated = runs(name="evaluated", previews=MemoryPreviews(), **BOTH)
    beside = runs(name="beside", slots=2, seed=3, every=1, max_steps=25)
    engine = engines(evaluated)
    out_of_memory(events, 2)
    ended, other = together(engine, evaluated, beside)
    assert isinstance(ended.error, torch.OutOfMemoryError)
    assert other.error is None
    alone = again(beside)
    together(engine, alone)
    assert kept(beside) == kept(alone)


def test_without_room_for_another_copy_an_evaluation_waits(
    runs: Runs, events: Events, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, copies = Cohort.loras_of, list[weakref.ref[torch.Tensor]]()

    def starved(self: Cohort, job: SlotJob) -> Any:
        if any(copy() is not None for copy in copies):
            raise torch.OutOfMemoryError("CUDA out of memory")
        weights, loras = make(self, job)
        copies.append(weakref.ref(weights))
        return weights, loras

    monkeypatch.setattr(Cohort, "loras_of", starved)
    many = [runs(name=str(n), seed=n, previews=MemoryPreviews(), **BOTH | {"max_steps": 5}) for n in range(2)]
    jobs = together(engines(many[0]), *many)
    assert [job.error for job in jobs] == [None, None]
    assert events.units == [("0", 5)] * UNITS + [("1", 5)] * UNITS
    assert [sorted(pictures(run)) for run in many] == [[(5, 0)], [(5, 0)]]


def test_a_job_that_loses_its_slot_keeps_its_evaluation(
    runs: Runs, events: Events, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, failures = Cohort.step, [1]

    def starved(self: Cohort) -> None:
        if len(self.jobs) > 1 and len(events.units) == 4 and failures:
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self)

    monkeypatch.setattr(Cohort, "step", starved)
    asked = {"held_out": 1, "every_epochs": 1, "patience": 50, "previews": ["sks dog"]}
    beside = runs(name="beside", slots=2, seed=3, max_steps=12)
    evaluated = runs(name="evaluated", previews=MemoryPreviews(), **BOTH | {"validation": asked})
    jobs = together(engines(evaluated), beside, evaluated)
    assert not failures
    assert [(job.error, job.step) for job in jobs] == [(None, 12), (None, 10)]
    assert [done for done, _ in jobs[1].validation_losses] == [5, 10]
    assert sorted(pictures(evaluated)) == [(5, 0), (10, 0)]


# ---- in batches ---------------------------------------------------------------------------------------------------


def all_of(work: Generator[None, None, Result]) -> tuple[int, Result]:
    """Do all units one after the other; their number, and what they made."""
    units = -1  # the first stop is before the first unit
    while True:
        units += 1
        try:
            next(work)
        except StopIteration as finished:
            return units, finished.value


@pytest.mark.parametrize("family", ["sd15", "z-image"])
def test_batches_find_the_same_in_fewer_units(runs: Runs, family: str) -> None:
    """As on a GPU, several pictures at once."""
    asked = {"held_out": 1, "previews": ["a photo of sks dog", "a lawn", "a cat"]}
    run = runs(family, previews=MemoryPreviews(), objective={"masked": True}, **BOTH | {"validation": asked})
    base: Base = base_of(run)
    base.drawing = (DRAWING, 5.0)
    live = Live(run, families.find(family), base)
    live.step()
    held_out, prompts = live.job.validation_set, live.job.preview_prompts
    assert held_out is not None
    assert prompts is not None
    with live.applied():
        losses = [all_of(validation_loss(live.engine.family, base, held_out, count)) for count in (1, 3)]
        drawn = [all_of(draw_previews(live.engine.family, base, prompts, count)) for count in (1, 2)]
    assert [units for units, _ in losses] == [LEVELS, 3]
    assert losses[1][1] == pytest.approx(losses[0][1], rel=1e-5)
    assert [units for units, _ in drawn] == [3 * DRAWING, 2 * DRAWING]
    for one, many in zip(drawn[0][1], drawn[1][1], strict=True):
        assert one.shape == many.shape
        assert torch.allclose(one, many, atol=1e-3)
