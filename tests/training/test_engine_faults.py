"""What fails in a step ends no job that could go on, hangs none, and keeps no memory that the next step wants."""

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import Cancelled, DeviceLost, HandOver, OutOfMemory, Stop, WorkerLost
from jobs.stages import control
from tasks.workers import worker
from tests.training.conftest import MemoryCheckpoints, Watcher
from tests.training.live import meet, wait_until_gone
from tests.training.test_engine import base_of, side_by_side
from training import device, device_failure, families
from training.backends import local_training, resident
from training.backends.local import train
from training.backends.local_training import LocalTraining
from training.engine import engine as engine_module
from training.engine.cohorts import assignment
from training.engine.cohorts.cohort import Cohort
from training.engine.cohorts.slot_job import SlotJob
from training.engine.engine import Engine
from training.engine.recorder import Recorder, Recording
from training.engine.step import Step
from training.families import family as family_module
from training.families.family import Base, FamilyCode
from training.ports import TrainResult, TrainRun

Runs = Callable[..., TrainRun]
LOST = "CUDA error: an illegal memory access was encountered"


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_resident", None)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The device failures that are reported to the process."""
    reasons: list[str] = []
    monkeypatch.setattr(device_failure, "_listeners", [reasons.append])
    return reasons


# ---- a device that fails ------------------------------------------------------------------------------------------


def fail_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """After some steps every operation of the engine on its stacks raises, as a lost CUDA context does."""
    step, made = Cohort.step, []

    def lost(*_: Any, **__: Any) -> Any:
        raise torch.AcceleratorError(LOST)

    def failing(self: Cohort) -> None:
        made.append(1)
        if len(made) > steps:
            for name in ("unseat", "copied", "snapshot", "resize", "seat"):
                monkeypatch.setattr(Cohort, name, lost)
            lost()
        step(self)

    monkeypatch.setattr(Cohort, "step", failing)


def test_a_device_error_ends_every_job_and_hangs_none(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, reported: list[str]
) -> None:
    fail_after(monkeypatch, 3)
    many = [runs(name=str(n), seed=n, slots=2, max_steps=10_000) for n in range(4)]  # two of them wait for a slot
    ended_at_report: list[int] = []
    ended: list[bool] = []
    end = SlotJob.end

    def ending(job: SlotJob, *error: BaseException) -> None:
        assert resident._resident is not None
        ended.append(resident._resident.engine.is_alive)
        end(job, *error)

    meet(monkeypatch, 4)
    monkeypatch.setattr(SlotJob, "end", ending)
    device_failure.on_device_failure(lambda _: ended_at_report.append(len(ended)))
    found = side_by_side(*many)
    assert [type(one) for one in found] == [DeviceLost] * 4
    assert ended == [True] * 4, "without a thread, a job would take the worker for lost"
    assert ended_at_report == [0], "the worker knows before any job is free to be tried again"
    assert all(isinstance(one, DeviceLost) and one.retryable for one in found)
    assert len(reported) == 1
    assert "illegal memory access" in reported[0]
    assert resident._resident is None, "the base is dropped"


def test_a_job_that_joins_a_failed_engine_ends_at_once(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, reported: list[str]
) -> None:
    run = runs()
    engine = Engine(families.find("sd15"), base_of(run))
    fail_after(monkeypatch, 0)
    for _ in range(2):
        with pytest.raises(DeviceLost):
            LocalTraining(run, engine, {"base": ""}, 6, None).train()
    assert len(reported) == 1


def test_a_device_error_in_a_jobs_own_thread_is_a_lost_device(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, reported: list[str]
) -> None:
    def lost(*_: Any) -> None:
        raise RuntimeError(LOST)

    monkeypatch.setattr(local_training, "encode_dataset", lost)
    with pytest.raises(DeviceLost):
        train(runs())
    assert len(reported) == 1
    assert resident._resident is None


@pytest.mark.parametrize("stop", [None, Cancelled(), HandOver()])
def test_a_thread_that_is_gone_is_noticed(runs: Runs, monkeypatch: pytest.MonkeyPatch, stop: Exception | None) -> None:
    """A caller that waits for the engine sees that its thread has ended, whatever ended it."""
    monkeypatch.setattr(Engine, "_run", lambda self: None)
    run = runs(control=Watcher(0, stop))
    training = LocalTraining(run, Engine(families.find("sd15"), base_of(run)), {"base": ""}, 6, None)
    if stop is None:
        with pytest.raises(WorkerLost, match="thread"):
            training.train()
        return
    training._leave()  # does not wait for ever


def test_an_error_of_the_engine_itself_ends_its_jobs(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Engine) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(Engine, "_end_round", broken)
    with pytest.raises(ZeroDivisionError):
        train(runs(max_steps=10_000))
    assert resident._resident is None


def test_a_worker_whose_device_failed_ends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[int] = []
    monkeypatch.setattr(control, "leaving", threading.Event())
    monkeypatch.setattr(os, "kill", lambda process, number: signals.append(number))
    monkeypatch.setattr(device_failure, "_listeners", [worker._end])
    for _ in range(2):
        device_failure.report(LOST)
    assert signals == [signal.SIGTERM]
    assert control.leaving.is_set(), "its other trainings hand over"


# ---- memory that runs out -----------------------------------------------------------------------------------------


class Card:
    """Memory of a card as a step uses it: so many units for each slot, beside what recordings keep.

    What a step holds is counted while its tensors live, so a traceback that keeps them keeps the memory.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.held: list[weakref.ref[Tensor]] = []

    def take(self, units: int) -> Tensor:
        if self.used + units > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        taken = torch.zeros(units)
        self.held.append(weakref.ref(taken))
        return taken

    @property
    def used(self) -> int:
        return sum(len(tensor) for ref in self.held if (tensor := ref()) is not None)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """Room for four slots. Half of what a step needs is taken before the other half."""
    card = Card(room=8)
    step = Step._step

    def metered(self: Step, batch: Any) -> Tensor:
        units = len(batch.active)
        forward = [card.take(units)]
        cycle: list[Any] = [forward]
        cycle.append(cycle)  # as modules and hooks refer to each other
        backward = card.take(units)
        made = step(self, batch)
        forward.clear()  # a step that ends keeps nothing
        del backward
        return made

    monkeypatch.setattr(Step, "_step", metered)
    gc.collect()
    return card


def test_a_card_with_room_for_four_of_eight_slots_loses_no_job(runs: Runs, card: Card) -> None:
    many = [runs(name=str(n), seed=n, slots=8, max_steps=12) for n in range(8)]
    found = side_by_side(*many)
    assert [one.steps for one in found if isinstance(one, TrainResult)] == [12] * 8
    gc.collect()
    assert card.used == 0


def test_recordings_are_dropped_before_memory_is_asked_for_again(
    runs: Runs, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs(slots=4, max_steps=3)
    engine = Engine(families.find("sd15"), base_of(run))
    _ = engine.layers
    engine.recorder = Recorder(lambda work: (lambda: None, work()))
    engine.recorder.keep(("another",), Recording(card.take(4), lambda: None, torch.zeros(1)))
    LocalTraining(run, engine, {"base": ""}, 3, None).train()
    assert len(engine.recorder) == 0
    assert engine.failure is None
    engine.close()


def test_a_cohort_that_cannot_grow_goes_on_and_the_next_job_waits(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    made, tried = LocalTraining.__init__, []

    def growing(self: LocalTraining, *given: object) -> None:
        made(self, *given)  # type: ignore[arg-type]
        self.job.is_fixed = False

    def cannot(self: Cohort, slots: int) -> None:
        tried.append(slots)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LocalTraining, "__init__", growing)
    monkeypatch.setattr(Cohort, "resize", cannot)
    found = side_by_side(*(runs(name=str(n), seed=n, slots=4, max_steps=20) for n in range(3)))
    assert all(isinstance(one, TrainResult) for one in found)
    assert tried


def test_out_of_memory_while_encoding_is_recovered_and_spoils_nothing(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second job finds a base that is loaded, beside which its encoders do not fit."""
    real, tried = local_training.encode_dataset, []

    def starved(family: FamilyCode, base: Base, *given: Any) -> Any:
        tried.append(base.is_parked)
        if not base.is_parked:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(family, base, *given)

    first = train(runs(name="first"))
    base = resident._resident
    monkeypatch.setattr(local_training, "encode_dataset", starved)
    assert train(runs(name="second")).sha256 == first.sha256
    assert tried == [False, True]
    assert resident._resident is base

    def never(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(local_training, "encode_dataset", never)
    with pytest.raises(OutOfMemory):
        train(runs(name="third"))
    assert resident._resident is base, "the neighbours' base stays"


def no_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding has no room beside the denoiser; and when the denoiser is moved back, memory runs out half-way, once.

    The sixth step of a job waits for the encoding of another.
    """
    encode, move, step = local_training.encode_dataset, family_module.move, Cohort.step
    is_encoding, moves = threading.Event(), list[int]()

    def starved(family: FamilyCode, base: Base, *given: Any) -> Any:
        if base._denoiser is not None and not base.is_parked:
            is_encoding.set()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(family, base, *given)

    def stepped(self: Cohort) -> None:
        if any(job is not None and job.step == 5 for job in self.jobs):
            assert is_encoding.wait(60)
        step(self)

    def moved(denoiser: Any, to: torch.device) -> None:
        moves.append(1)
        if len(moves) == 2:
            for weights in list(denoiser.parameters())[::2]:
                weights.data = torch.empty(0)  # which no product accepts
            raise torch.OutOfMemoryError("CUDA out of memory")
        move(denoiser, to)

    monkeypatch.setattr(Cohort, "step", stepped)
    monkeypatch.setattr(local_training, "encode_dataset", starved)
    monkeypatch.setattr(family_module, "move", moved)


def test_a_base_that_cannot_be_moved_back_is_loaded_again_and_loses_no_job(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job that encoded and its neighbour are handed over, the neighbour with a checkpoint where it stood."""
    stores = [MemoryCheckpoints(), MemoryCheckpoints()]
    watchers = [Watcher(), Watcher()]
    asked = [runs(name=str(n), seed=n, slots=2, max_steps=(30, 6)[n], checkpoints=stores[n]) for n in range(2)]
    whole = [train(replace(run, checkpoints=MemoryCheckpoints())) for run in asked]
    monkeypatch.setattr(resident, "_resident", None)
    no_way_back(monkeypatch)
    found: dict[int, Stop] = {}

    def attempt(number: int) -> None:
        try:
            train(replace(asked[number], control=watchers[number]))
        except Stop as error:
            found[number] = error

    first = threading.Thread(target=attempt, args=(0,))
    first.start()
    while not watchers[0].reports:  # until the neighbour steps
        assert first.is_alive()
        first.join(0.01)
    attempt(1)
    first.join()
    assert [type(found[number]) for number in range(2)] == [HandOver, HandOver]
    assert resident._resident is None, "the base is dropped"
    assert stores[0].steps(), "no step of the neighbour is lost"
    assert stores[0].steps()[-1] >= watchers[0].reports[-1].step
    again = [train(run) for run in asked]
    assert again[0].resumed_from == stores[0].steps()[0]
    assert [one.sha256 for one in again] == [one.sha256 for one in whole]


def test_a_paused_engine_does_not_step(runs: Runs) -> None:
    run = runs(max_steps=10_000, checkpoints=MemoryCheckpoints())
    engine = Engine(families.find("sd15"), base_of(run))
    training = LocalTraining(run, engine, {"base": ""}, 10_000, None)
    engine.join(training.job)
    training.job.news.wait(60)
    with engine.paused():
        before = training.job.step
        assert engine._is_stepping is False
        engine.leave(training.job)  # wakes the thread, which must wait all the same
        assert not training.job.gone
        assert training.job.step == before
    training._leave()
    engine.close()
    assert not engine.is_alive


# ---- threads and bases --------------------------------------------------------------------------------------------


def test_every_thread_of_a_device_makes_it_current(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()

    def noted(chosen: torch.device) -> None:
        seen.add(threading.current_thread().name)

    monkeypatch.setattr(device, "make_current", noted)
    monkeypatch.setattr(engine_module, "make_current", noted)
    worker = threading.Thread(target=train, args=(runs(),), name="job")
    worker.start()
    worker.join()
    assert seen == {"job", "engine"}
    monkeypatch.undo()
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    device.make_current(torch.device("cuda:1"))
    device.make_current(torch.device("cpu"))
    assert asked == [torch.device("cuda:1")]


@pytest.mark.parametrize(
    ("capability", "deterministic", "wanted"),
    [
        ((9, 0), False, {"flash": True, "mem_efficient": True}),
        ((8, 6), True, {"flash": True, "mem_efficient": False}),
        ((7, 5), False, {"flash": False, "mem_efficient": True}),
    ],
)
def test_kernels_are_chosen_for_the_architecture_and_logged(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capability: tuple[int, int],
    deterministic: bool,
    wanted: dict[str, bool],
) -> None:
    found: dict[str, bool] = {}
    for name in ("flash", "mem_efficient", "cudnn", "math"):
        monkeypatch.setattr(torch.backends.cuda, f"enable_{name}_sdp", lambda on, name=name: found.update({name: on}))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: None)
    monkeypatch.setattr(device, "_chosen", {})
    caplog.set_level("INFO")
    for _ in range(2):
        device.configure(torch.device("cuda"), deterministic=deterministic)
    assert found == {**wanted, "cudnn": False, "math": True}
    assert torch.backends.cudnn.benchmark is not deterministic
    assert caplog.text.count("attention on cuda") == 1


def test_the_old_base_is_gone_before_the_next_is_loaded(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    train(runs("sd15"))
    assert resident._resident is not None
    old = weakref.ref(resident._resident.engine.base.denoiser)
    thread = resident._resident.engine._thread
    found: list[Any] = []
    load = Engine.__init__

    def noted(self: Engine, family: FamilyCode, base: Base, fingerprint: str = "") -> None:
        found.append((old(), thread is not None and thread.is_alive()))
        load(self, family, base, fingerprint)

    monkeypatch.setattr(Engine, "__init__", noted)
    train(runs("sdxl"))
    assert found == [(None, False)]


# ---- cohorts shrink -----------------------------------------------------------------------------------------------


@pytest.fixture
def following(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """As on a GPU, slots follow the jobs. Gives jobs and slots of each step."""
    made, step = LocalTraining.__init__, Cohort.step
    seen: list[tuple[int, int]] = []

    def free(self: LocalTraining, *given: object) -> None:
        made(self, *given)  # type: ignore[arg-type]
        self.job.is_fixed = False

    def noted(self: Cohort) -> None:
        seen.append((len(self), len(self.jobs)))
        step(self)

    monkeypatch.setattr(LocalTraining, "__init__", free)
    monkeypatch.setattr(Cohort, "step", noted)
    return seen


def test_a_cohort_shrinks_when_half_its_slots_have_been_idle(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, following: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(assignment, "SHRINK_AFTER", 5)
    many = [runs(name=str(n), seed=n, slots=4, max_steps=60 if n == 3 else 12) for n in range(4)]
    engine = Engine(families.find("sd15"), base_of(many[0]))
    trainings = [LocalTraining(run, engine, {"base": ""}, run.spec.max_steps or 0, None) for run in many]
    with engine.paused():
        for training in trainings:
            engine.join(training.job)
    for training in trainings:
        wait_until_gone(training.job)
    assert [training.job.step for training in trainings] == [12, 12, 12, 60]
    # Not at once, since a job may come at any time; and then to what the last job needs.
    assert following == [(4, 4)] * 12 + [(1, 4)] * 5 + [(1, 1)] * 43
    engine.close()


def test_on_a_cpu_the_shape_stays(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "SHRINK_AFTER", 0)
    step, seen = Cohort.step, set()

    def noted(self: Cohort) -> None:
        seen.add(len(self.jobs))
        step(self)

    monkeypatch.setattr(Cohort, "step", noted)
    train(runs(slots=4, max_steps=5))
    assert seen == {4}
