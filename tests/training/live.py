"""A live model with one job in its engine, stepped by the test itself; the wait for an engine that steps by itself."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from training.backends.local_training import LocalTraining
from training.engine.cohorts.cohort import Cohort
from training.engine.cohorts.job_batch import JobBatch
from training.engine.cohorts.slot_job import SlotJob
from training.engine.engine import Engine
from training.engine.objective import errors
from training.families.encoders import Encoders
from training.families.family import Base, FamilyCode
from training.lora.safetensor import Array
from training.ports import TrainRun


def of(schedule: Any) -> Base:
    """A base of which only the schedule is asked, on the CPU."""
    return Base(lambda: None, Encoders({}), schedule, torch.device("cpu"), torch.float32, "")


def wait_until_gone(job: SlotJob) -> None:
    """Wait until the engine has released the job. A wait that leaves `news` set would take a core from the engine."""
    while not job.gone:
        job.news.wait(1.0)
        job.news.clear()


def meet(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the engine begin once `count` jobs have joined it: on a busy machine, one could end before the next joins."""
    join, barrier = Engine.join, threading.Barrier(count)

    def joined(engine: Engine, job: SlotJob) -> None:
        with engine.paused():
            join(engine, job)
            barrier.wait(120)

    monkeypatch.setattr(Engine, "join", joined)


class Live:
    """One job alone in a cohort of `slots` on `base`."""

    def __init__(
        self,
        run: TrainRun,
        family: FamilyCode,
        base: Base,
        total: int = 6,
        slots: int = 1,
    ) -> None:
        self.base = base
        self.engine = Engine(family, base)
        self.job = LocalTraining(run, self.engine, {"base": ""}, total, None).job
        self.moments, self.conditions = list(self.job.moments), list(self.job.conditions)
        self.cohort = Cohort(family, base, self.engine.layers, self.job.shape, slots, self.engine.recorder)
        self.cohort.seat(self.job)

    def step(self) -> float:
        """One step; its loss."""
        self.cohort.step()
        self.cohort.read_losses()
        return self.job.losses[-1][1]

    def gradients(self, batch: JobBatch) -> tuple[float, dict[str, Array]]:
        """The loss on `batch` with the LoRA as it is now, and the gradient of each of its matrices."""
        stack, layout = self.cohort.stack, self.cohort.layout
        with torch.enable_grad():
            loras = layout.loras(stack.masters, stack.scales, torch.float32)
            with self.engine.layers.applying(loras):
                loss = errors(self.engine.family, self.base, batch.made, batch.conditions).mean()
                loss.backward()  # type: ignore[no-untyped-call]
        assert stack.masters.grad is not None
        return loss.item(), layout.read(stack.masters.grad[0], self.job.run.spec.ranks)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The LoRA as it is now, applied to whatever the denoiser is asked."""
        stack, layout = self.cohort.stack, self.cohort.layout
        with torch.no_grad():
            loras = layout.loras(stack.masters, stack.scales, self.base.dtype)
        with torch.no_grad(), self.engine.layers.applying(loras):
            yield
