"""The cohorts of one engine: which jobs have a slot, and how many slots there are.

A cohort gets more slots as jobs join, and fewer once half of them have been idle for a while or when memory runs out.
"""

import logging
import threading
import time
from collections.abc import Callable

import torch

from core.telemetry import metrics
from training.engine import distributed, recorder
from training.engine.cohorts.cohort import LADDER, Cohort
from training.engine.cohorts.slot_job import Shape, SlotJob
from training.engine.cohorts.slot_ladder import SlotLadder
from training.engine.faults import free_memory, is_device_error, is_out_of_memory, without_frames
from training.engine.lora_layers import LoRALayers
from training.engine.memory_layout import lay_out
from training.engine.recorder import Recorder
from training.families.family import Base, FamilyCode

log = logging.getLogger(__name__)

THREADS = torch.get_num_threads()  # PyTorch's CPU threads when this process began
SHRINK_AFTER = 50  # steps with at least half the slots idle before a cohort shrinks: a job may join at any time


class Cohorts:
    """The cohorts on one base model, by shape. Used by the engine's thread alone, except `layers`."""

    def __init__(self, family: FamilyCode, base: Base, fingerprint: str) -> None:
        """fingerprint: of the base model; the rates of `SlotLadder` are stored under it."""
        self.family, self.base = family, base
        self.recorder: Recorder | None = None
        self._fingerprint = fingerprint
        self._loading = threading.Lock()
        self._layers: LoRALayers | None = None
        self._by_shape: dict[Shape, Cohort] = {}
        self._limits: dict[Shape, int] = {}  # slots that fit, by shape of a cohort whose memory ran out with more

    @property
    def layers(self) -> LoRALayers:
        """The wrapped layers. The first call loads the denoiser: a job calls it after encoding, when memory is free.

        Raises BaseModelUnavailable.
        """
        with self._loading:
            if self._layers is None:
                lay_out(self.base.denoiser)
                self._layers = LoRALayers(
                    self.base.denoiser, self.family.targets, self.base.text_encoders, self.family.record.text_targets
                )
                self._ladder = SlotLadder(self._fingerprint, self.base.device)
                if self.base.device.type == "cuda" and not distributed.is_asked_for() and recorder.is_allowed():
                    self.recorder = recorder.cuda_recorder(self.base.device)
            return self._layers

    def __len__(self) -> int:
        return len(self._by_shape)

    @property
    def all(self) -> list[Cohort]:
        """All cohorts; the list is a copy."""
        return list(self._by_shape.values())

    @property
    def jobs(self) -> list[SlotJob]:
        """All jobs that have a slot."""
        return [job for cohort in self._by_shape.values() for job in cohort.jobs if job is not None]

    # ---- slots for jobs ----

    def seat(self, job: SlotJob) -> bool:
        """Give a job a slot, or end it with its error; False if it has to wait for a slot.

        Raises the error of a device that failed.
        """
        try:
            cohort = self._room_for(job)
            if cohort is None:
                return False
            cohort.seat(job)
        except Exception as error:  # noqa: BLE001 - any error is this job's own: the thread must not end
            failure = without_frames(error)
        else:
            self._by_shape[job.shape] = cohort
            return True
        if is_device_error(failure):
            raise failure
        if not is_out_of_memory(failure):
            job.end(failure)
            return True
        self.free_memory()
        cohort = self._by_shape.get(job.shape)
        if cohort is not None:
            self._limits[job.shape] = len(cohort.jobs)  # the cohort is unchanged; the job waits for one of its slots
        elif not self._by_shape:
            job.end(failure)
            return True
        return False

    def _room_for(self, job: SlotJob) -> Cohort | None:
        """The cohort with a free slot for the job, enlarged or created if necessary; None if there is no room."""
        most = min(self._limits.get(job.shape, LADDER[-1]), rung(job.slots))
        cohort = self._by_shape.get(job.shape)
        if cohort is None:
            self._ladder.load(job.run.encodings)
            return Cohort(self.family, self.base, self.layers, job.shape, most if job.is_fixed else 1, self.recorder)
        if None not in cohort.jobs:
            now = len(cohort.jobs)
            slots = rung(now + 1)
            if now >= most or not (self._ladder.pays(job.shape, slots) and self._ladder.fits(slots, now)):
                return None
            cohort.resize(slots)
        return cohort

    def unseat(self, job: SlotJob) -> None:
        """Empty a job's slot, if it has one."""
        for cohort in self._by_shape.values():
            if job in cohort.jobs:
                cohort.unseat(job)

    def remove(self, cohort: Cohort) -> None:
        """Forget a cohort. The next one of its shape may have enough memory for all slots. Does not use the device."""
        self._by_shape.pop(cohort.shape, None)
        self._limits.pop(cohort.shape, None)

    def clear(self) -> None:
        """Forget all cohorts. Does not use the device."""
        self._by_shape.clear()
        self._limits.clear()

    # ---- a step ----

    def step(self, cohort: Cohort) -> None:
        """One step of a cohort, timed."""
        begun = time.monotonic()
        self._share_threads(cohort)
        with metrics.stepping(self.family.name, self.base.device.type, cohort.ready):
            cohort.step()
        self._note(cohort, time.monotonic() - begun)

    def _share_threads(self, cohort: Cohort) -> None:
        """On a CPU, step several slots with one thread, and a single slot with all threads.

        Threads divide the rows of a product among themselves, and a kernel sums a part of two rows in another order
        than one of four rows: with several threads, a slot's last digits would depend on its place.
        """
        if self.base.device.type != "cpu":
            return
        wanted = 1 if len(cohort.jobs) > 1 else THREADS
        if torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)

    def _note(self, cohort: Cohort, seconds: float) -> None:
        """Give the ladder the duration of a step, if the number of slots follows the jobs and no other cohort steps.

        A GPU runs asynchronously, but after a few steps the host waits for it, so the host's durations are right.
        """
        variable = [job for job in cohort.jobs if job is not None and job.slots > 1 and not job.is_fixed]
        if variable and len(self._by_shape) == 1:
            self._ladder.note(cohort.shape, len(cohort.jobs), seconds, variable[0].run.encodings)

    # ---- how many slots ----

    def shrink(self, cohort: Cohort, *, is_awaited: bool) -> None:
        """Remove slots if at least half of them have been idle for a while and the number of slots follows the jobs.

        is_awaited: whether a job waits for a slot of the cohort, which then keeps all.
        """
        slots = rung(len(cohort))
        is_wide = slots <= len(cohort.jobs) // 2 and not any(job is not None and job.is_fixed for job in cohort.jobs)
        cohort.idle_steps = cohort.idle_steps + 1 if is_wide else 0
        if cohort.idle_steps > SHRINK_AFTER and not is_awaited:
            log.info("half the slots are idle: %d slots become %d", len(cohort.jobs), slots)
            cohort.resize(slots)
            cohort.idle_steps = 0

    def make_room(self, cohort: Cohort, requeue: Callable[[SlotJob], None]) -> bool:
        """After memory ran out: halve the slots, or else use gradient checkpointing; False if both are done already.

        requeue: called with each job that loses its slot, with its state, to wait for another.
        """
        cohort.stack.masters.grad = None
        self.free_memory()
        if len(cohort.jobs) > 1:
            fewer = len(cohort.jobs) // 2
            log.warning("out of memory with %d slots: the next steps have %d", len(cohort.jobs), fewer)
            self._limits[cohort.shape] = fewer
            for job in [job for job in cohort.jobs if job is not None][fewer:]:
                job.state = cohort.snapshot(job)
                requeue(job)
                cohort.unseat(job)
            cohort.resize(fewer)
        elif not self.base.is_gradient_checkpointing:
            log.warning("out of memory: the next steps use gradient checkpointing")
            self.base.checkpoint_gradients(True)
        else:
            return False
        return True

    def free_memory(self) -> None:
        """Drop the recorded steps, and return unused memory to the device."""
        if self.recorder is not None:
            self.recorder.drop()
        free_memory(self.base.device)


def rung(jobs: int) -> int:
    """The smallest number of slots on the ladder with room for `jobs` jobs."""
    return next((slots for slots in LADDER if slots >= jobs), LADDER[-1])
