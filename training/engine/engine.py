"""The engine of one loaded base model: a thread that steps every cohort on it, round by round.

Jobs come and go between steps, as requests do in a continuously batched inference server. Each job has a thread of its
own (the worker's task), which waits here, watches over it, and keeps its checkpoints; the engine's thread only steps.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core import metrics
from core.errors import DeviceLost, HandOver
from training import device_failure
from training.device import make_current
from training.engine import distributed, recorder
from training.engine.cohort import LADDER, Cohort
from training.engine.evaluations import Evaluations
from training.engine.faults import free_memory, is_device_error, is_out_of_memory, without_frames
from training.engine.lora_layers import LoRALayers
from training.engine.memory_layout import lay_out
from training.engine.recorder import Recorder
from training.engine.slot_job import Shape, SlotJob
from training.engine.slot_ladder import SlotLadder
from training.families.family import Base, Family

log = logging.getLogger(__name__)

THREADS = torch.get_num_threads()  # of a CPU, as this process began
SHRINK_AFTER = 50  # steps with half the slots idle, before a cohort shrinks: a job may come at any time
_IDLE_S = 10.0  # the thread ends after so long without a job; the next one starts another


class Engine:
    """One base model, its wrapped linears, and the jobs that train on it. `join` may be called from any thread."""

    def __init__(self, family: Family, base: Base, fingerprint: str = "") -> None:
        self.family, self.base = family, base
        self._fingerprint = fingerprint
        self._layers: LoRALayers | None = None
        self.recorder: Recorder | None = None
        self._loading = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: list[SlotJob] = []
        self._cohorts: dict[Shape, Cohort] = {}
        self._tops: dict[Shape, int] = {}  # most slots, where memory or a setting said so
        self._evaluations = Evaluations(self._end_alone, self._free_memory)
        self._thread: threading.Thread | None = None
        self._is_stepping, self._pauses, self._is_closing = False, 0, False
        self.failure: BaseException | None = None  # why nothing can be trained here any more

    @property
    def layers(self) -> LoRALayers:
        """The wrapped layers. The denoiser is loaded when they are first asked for: after a job's encoders are parked.

        Raises BaseModelUnavailable.
        """
        with self._loading:
            if self._layers is None:
                lay_out(self.base.denoiser)
                self._layers = LoRALayers(self.base.denoiser, self.family.targets)
                self._ladder = SlotLadder(self._fingerprint, self.base.device)
                if self.base.device.type == "cuda" and not distributed.is_asked_for() and recorder.is_allowed():
                    self.recorder = recorder.cuda_recorder(self.base.device)
            return self._layers

    def join(self, job: SlotJob) -> None:
        """Let a job train: it gets a slot at the next step boundary that has one. Raises BaseModelUnavailable."""
        _ = self.layers  # loaded on the job's thread, and an error is the job's own
        with self._changed:
            if self.failure is not None:
                job.end(self.failure)
                return
            self._waiting.append(job)
            if not self.is_alive:
                self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def leave(self, job: SlotJob, *, is_abandoned: bool = False) -> None:
        """Ask for a job to be let go: as soon as its evaluation is finished, and then its last snapshot is where it
        stands; at the next step boundary if nothing more is wanted of it.
        """
        with self._changed:
            job.is_abandoned, job.leaving = is_abandoned, True
            self._changed.notify_all()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs: without it no job that joined ever ends."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def close(self) -> None:
        """End the thread, and wait until it has ended: then nothing of it holds the base. No job may be left."""
        with self._changed:
            self._is_closing = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, no cohort steps, and the device has the memory that steps keep for themselves: room to encode."""
        with self._changed:
            self._pauses += 1
            self._changed.wait_for(lambda: not self._is_stepping)
        try:
            self._free_memory()
            yield
        finally:
            with self._changed:
                self._pauses -= 1
                self._changed.notify_all()

    # ---- the thread ----

    def _run(self) -> None:
        try:
            make_current(self.base.device)
            while self._admit():
                for cohort in list(self._cohorts.values()):
                    error = self._advance(cohort)
                    if error is not None:
                        self._recover(cohort, error)
                self._evaluations.advance()
                self._end_round()
        except BaseException as error:
            log.exception("the engine stops")
            self._fail_all(without_frames(error))

    def _admit(self) -> bool:
        """Seat the waiting jobs that find room, and begin a round; False if the thread is to end.

        A job that asked to leave before it was seated has left.
        """
        with self._changed:
            while self._pauses or not (self._waiting or self._cohorts):
                has_news = not self._is_closing and self._changed.wait(_IDLE_S)
                if not (has_news or self._pauses or self._waiting or self._cohorts):
                    self._thread = None
                    return False
            still = []
            for job in self._waiting:
                if job.leaving:
                    job.end()
                elif not self._seat(job):
                    still.append(job)
            if len(still) < len(self._waiting):
                for cohort in self._cohorts.values():
                    log.info("%d job(s) in %d slot(s), %s", len(cohort), len(cohort.jobs), cohort.shape)
            self._waiting = still
            self._is_stepping = True
            return True

    def _end_round(self) -> None:
        with self._changed:
            self._is_stepping = False
            self._changed.notify_all()

    def _seat(self, job: SlotJob) -> bool:
        """Give a job a slot; False if it has to wait for one."""
        top = min(self._tops.get(job.shape, LADDER[-1]), _rung(job.slots))
        try:
            cohort = self._room_for(job, top)
            if cohort is None:
                return False
            cohort.seat(job)
        except Exception as error:  # noqa: BLE001 - of this job, whatever it is: the thread must not end
            failure = without_frames(error)
        else:
            self._cohorts[job.shape] = cohort
            return True
        if is_device_error(failure):
            raise failure
        if not is_out_of_memory(failure):
            job.end(failure)
            return True
        self._free_memory()
        cohort = self._cohorts.get(job.shape)
        if cohort is not None:
            self._tops[job.shape] = len(cohort.jobs)  # the cohort is as it was, and the job waits for a slot of it
        elif not self._cohorts:
            job.end(failure)
            return True
        return False

    def _room_for(self, job: SlotJob, top: int) -> Cohort | None:
        """The cohort that has a free slot for the job, grown or new if need be; None if there is none."""
        cohort = self._cohorts.get(job.shape)
        if cohort is None:
            self._ladder.remember(job.run.encodings)
            return Cohort(self.family, self.base, self.layers, job.shape, top if job.is_fixed else 1, self.recorder)
        if None not in cohort.jobs:
            now = len(cohort.jobs)
            slots = _rung(now + 1)
            if now >= top or not (self._ladder.pays(job.shape, slots) and self._ladder.fits(slots, now)):
                return None
            cohort.resize(slots)
        return cohort

    def _advance(self, cohort: Cohort) -> BaseException | None:
        """One step of a cohort and what it brings; the error that it ended with, if any."""
        try:
            self._let_go(cohort)
            if not len(cohort):
                del self._cohorts[cohort.shape]
                return None
            self._shrink(cohort)
            self._evaluations.hold(cohort)
            if cohort.ready:
                begun = time.monotonic()
                self._share_threads(cohort)
                with metrics.stepping(self.family.name, self.base.device.type, cohort.ready):
                    cohort.step()
                self._learn(cohort, time.monotonic() - begun)
            self._evaluations.attend(cohort)
            self._let_go(cohort)
        except Exception as error:
            if not is_out_of_memory(error):
                log.exception("a step failed")
            return without_frames(error)
        return None

    def _share_threads(self, cohort: Cohort) -> None:
        """On a CPU, step several slots with one thread, and a lone slot with all.

        Threads divide the rows of a product between them, and a kernel sums up a part of two rows in another order than
        one of four: a slot's last digits would depend on its place.
        """
        if self.base.device.type != "cpu":
            return
        wanted = 1 if len(cohort.jobs) > 1 else THREADS
        if torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)

    def _learn(self, cohort: Cohort, seconds: float) -> None:
        """Note what a step took, where slots follow the jobs; on a GPU the host is soon as slow as the device."""
        follow = [job for job in cohort.jobs if job is not None and job.slots > 1 and not job.is_fixed]
        if follow and len(self._cohorts) == 1:
            self._ladder.note(cohort.shape, len(cohort.jobs), seconds, follow[0].run.encodings)

    def _let_go(self, cohort: Cohort) -> None:
        """Empty the slots of jobs that are done, or that asked to leave, once their evaluations are finished."""
        for job in cohort.jobs:
            if job is None:
                continue
            job.is_parting = job.is_parting or self._is_asked_to_leave(job)
            is_over = job.is_done or job.is_parting
            if is_over and (job.is_abandoned or not self._evaluations.is_pending(job)):
                cohort.read_losses()
                job.snapshots.append(cohort.copied(job))
                cohort.unseat(job)
                # If it did not ask itself, another process of this training was asked to stop.
                job.end(None if job.is_done or job.leaving else HandOver())

    def _is_asked_to_leave(self, job: SlotJob) -> bool:
        if not distributed.is_shared():
            return job.leaving
        return job.step % distributed.STOP_EVERY == 0 and distributed.any_of(job.leaving, self.base.device)

    def _shrink(self, cohort: Cohort) -> None:
        """Give back slots that have been idle for a while, at least half of them, where slots follow the jobs."""
        slots = _rung(len(cohort))
        is_wide = slots <= len(cohort.jobs) // 2 and not any(job is not None and job.is_fixed for job in cohort.jobs)
        cohort.idle_steps = cohort.idle_steps + 1 if is_wide else 0
        if cohort.idle_steps > SHRINK_AFTER and not any(job.shape == cohort.shape for job in self._waiting):
            log.info("half the slots are idle: going on with %d instead of %d", slots, len(cohort.jobs))
            cohort.resize(slots)
            cohort.idle_steps = 0

    def _end_alone(self, job: SlotJob, error: BaseException) -> None:
        """End a job with an error of its own; the others go on."""
        for cohort in self._cohorts.values():
            if job in cohort.jobs:
                cohort.unseat(job)
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
        job.end(error)

    # ---- errors: handled outside of the `except` block, in which the step's tensors are still held ----

    def _recover(self, cohort: Cohort, error: BaseException) -> None:
        """Out of memory: fewer slots, then gradient checkpointing. After any other error the cohort's jobs end with it.

        Raises the error of a device that failed, which ends the thread: nothing can be trained on it any more.
        """
        if is_device_error(error):
            raise error
        if not is_out_of_memory(error):
            self._drop(cohort, error)
            return
        try:
            self._make_room(cohort, error)
        except Exception as second:  # noqa: BLE001 - there is no room even to stand up
            failure = without_frames(second)
        else:
            return
        if is_device_error(failure):
            raise failure
        self._drop(cohort, failure)

    def _make_room(self, cohort: Cohort, error: BaseException) -> None:
        """Jobs that lose their slot wait for another, with their state."""
        cohort.stack.masters.grad = None
        self._free_memory()
        if len(cohort.jobs) > 1:
            fewer = len(cohort.jobs) // 2
            log.warning("out of memory with %d slots; going on with %d", len(cohort.jobs), fewer)
            self._tops[cohort.shape] = fewer
            for job in [job for job in cohort.jobs if job is not None][fewer:]:
                job.state = cohort.snapshot(job)
                with self._changed:
                    self._waiting.insert(0, job)
                cohort.unseat(job)
            cohort.resize(fewer)
        elif not self.base.is_gradient_checkpointing:
            log.warning("out of memory; going on with gradient checkpointing")
            self.base.checkpoint_gradients(True)
        else:
            self._drop(cohort, error)

    def _free_memory(self) -> None:
        if self.recorder is not None:
            self.recorder.drop()
        free_memory(self.base.device)

    def _drop(self, cohort: Cohort, error: BaseException) -> None:
        """End a cohort's jobs with an error. Does not touch the device."""
        self._cohorts.pop(cohort.shape, None)
        for job in cohort.jobs:
            if job is not None:
                job.end(error)

    def _fail_all(self, error: BaseException) -> None:
        """End every job of the engine, and the engine. Does not touch the device."""
        failed = is_device_error(error)
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        if failed:  # before any job ends: a job that is tried again must not come back to this worker
            device_failure.report(reason)
        with self._changed:
            self.failure = (
                DeviceLost(f"the device {self.base.device} of the worker failed ({reason}); another worker goes on")
                if failed
                else error
            )
            jobs = [
                *self._waiting,
                *(job for cohort in self._cohorts.values() for job in cohort.jobs if job is not None),
            ]
            self._waiting, self._thread, self._is_stepping = [], None, False
            for job in jobs:
                job.end(self.failure)
            self._changed.notify_all()
        self._cohorts.clear()


def _rung(jobs: int) -> int:
    """The smallest shape of the ladder that seats so many jobs."""
    return next((rung for rung in LADDER if rung >= jobs), LADDER[-1])
