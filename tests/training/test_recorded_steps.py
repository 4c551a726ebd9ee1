"""Recorded steps are the steps. A GPU repeats a recording over fixed tensors; here the recorded function is called."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.live import Live
from tests.training.test_engine import base_of
from training import families
from training.engine.cohorts.job_batch import draw
from training.engine.recorder import Recorder, Recording
from training.engine.step import WARM_STEPS
from training.families.family import Where
from training.ports import TrainRun

Runs = Callable[..., TrainRun]
Repeat = tuple[Callable[[], None], Tensor]


def recorder_of(slots: int, repeats: list[int], most: int = 8) -> Recorder:
    """A recorder that repeats a step by calling it."""

    def record(work: Callable[[], Tensor]) -> Repeat:
        loss = torch.zeros(slots)

        def repeat() -> None:
            repeats.append(1)
            loss.copy_(work())

        return repeat, loss

    return Recorder(record, most)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_recorded_steps_are_the_steps(runs: Runs, share: float) -> None:
    """Steps in which something is recalled are other operations: they have a recording of their own."""
    weights = []
    for is_recorded in (False, True):
        run, found = runs(seed=5, max_steps=20, objective={"prior_share": share}), families.find("sd15")
        live = Live(run, found, base_of(run), total=20, slots=2)
        repeats: list[int] = []
        recorder = recorder_of(2, repeats)
        live.cohort._step.recorder = recorder if is_recorded else None
        recalls = [bool(draw(found, live.base, live.job, step).made.recalled.any()) for step in range(WARM_STEPS + 9)]
        losses = [live.step() for _ in recalls]
        weights.append((live.cohort.stack.masters.detach().clone(), losses))
        kinds = {kind for kind in recalls if recalls.count(kind) > WARM_STEPS}
        assert len(kinds) == (2 if share else 1)
        assert len(recorder) == (len(kinds) if is_recorded else 0)
        assert len(repeats) == (len(recalls) - len(kinds) * WARM_STEPS if is_recorded else 0)
    assert torch.equal(weights[0][0], weights[1][0])
    assert weights[0][1] == weights[1][1]


def test_a_step_that_cannot_be_recorded_is_made_all_the_same(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    run, found = runs(), families.find("sd15")
    live = Live(run, found, base_of(run), total=20)

    def fails(work: Callable[[], Tensor]) -> Repeat:
        raise RuntimeError("operation not permitted when stream is capturing")

    live.cohort._step.recorder = Recorder(fails)
    for _ in range(WARM_STEPS + 2):
        live.step()
    assert live.job.step == WARM_STEPS + 2
    assert caplog.text.count("cannot be recorded as a CUDA graph") == 1


def test_an_empty_recording_is_a_failure(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    """As on cuda:1 where the capture's stream is another card's: what is repeated does nothing."""
    run, found = runs(seed=5), families.find("sd15")
    whole, live = (Live(run, found, base_of(run), total=20) for _ in range(2))
    live.cohort._step.recorder = Recorder(lambda work: (lambda: None, torch.zeros(1)))
    for _ in range(WARM_STEPS + 3):
        assert live.step() == whole.step()
    assert torch.equal(live.cohort.stack.masters, whole.cohort.stack.masters)
    assert "the recording is empty" in caplog.text


def test_recordings_that_were_not_used_the_longest_are_dropped() -> None:
    recorder = recorder_of(1, [], most=2)
    for key in ("a", "b"):
        recorder.keep((key,), Recording(None, lambda: None, torch.zeros(1)))
    assert recorder.get(("a",)) is not None
    recorder.keep(("c",), Recording(None, lambda: None, torch.zeros(1)))
    assert [recorder.get((key,)) is not None for key in "abc"] == [True, False, True]
    recorder.drop("a")
    assert recorder.get(("a",)) is None
    recorder.drop()
    assert len(recorder) == 0


@pytest.mark.gpu
def test_on_a_gpu_steps_are_recorded(runs: Runs) -> None:
    run, found = runs(seed=5, max_steps=20), families.find("sd15")
    base = found.load(Where(Path(run.base_model), torch.device("cuda"), torch.bfloat16))
    live = Live(run, found, base, total=20, slots=2)
    for _ in range(WARM_STEPS + 3):
        live.cohort.step()
    live.cohort.read_losses()
    assert live.cohort._step.recorder is not None, "recording failed; the log says why"
    assert len(live.cohort._step.recorder) == 1
    assert all(loss == loss for _, loss in live.job.losses)
