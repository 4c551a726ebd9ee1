"""The engine of one loaded base model: a thread that steps every cohort on it, round by round.

Jobs join and leave between steps, as requests do in a continuously batched inference server. Each job has a thread of
its own (the worker's task), which waits for the engine and saves checkpoints; the engine's thread only steps.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import DeviceLost, HandOver
from training import device_failure
from training.device import make_current
from training.engine import distributed
from training.engine.cohorts.assignment import Cohorts
from training.engine.cohorts.cohort import Cohort
from training.engine.cohorts.slot_job import SlotJob
from training.engine.evaluation.evaluations import Evaluations
from training.engine.faults import is_device_error, is_out_of_memory, without_frames
from training.engine.lora_layers import LoRALayers
from training.engine.recorder import Recorder
from training.families.family import Base, FamilyCode

log = logging.getLogger(__name__)

_IDLE_S = 10.0  # the thread ends after this time without a job; the next job starts another thread


class Engine:
    """One base model, its wrapped layers, and the jobs that train on it. Safe to use from several threads."""

    def __init__(self, family: FamilyCode, base: Base, fingerprint: str = "") -> None:
        """fingerprint: of the base model, to store measurements under."""
        self.family, self.base = family, base
        self._cohorts = Cohorts(family, base, fingerprint)
        self._changed = threading.Condition()
        self._parking = threading.Lock()
        self._waiting: list[SlotJob] = []
        self._evaluations = Evaluations(self._end_alone, self._cohorts.free_memory)
        self._thread: threading.Thread | None = None
        self._is_stepping, self._pauses, self._is_closing = False, 0, False
        self.failure: BaseException | None = None  # why no job can train on this engine any more

    @property
    def layers(self) -> LoRALayers:
        """The wrapped layers of the denoiser, which the first call loads. Raises BaseModelUnavailable."""
        return self._cohorts.layers

    @property
    def recorder(self) -> Recorder | None:
        """The recorder of steps; None if they run eagerly."""
        return self._cohorts.recorder

    @recorder.setter
    def recorder(self, recorder: Recorder | None) -> None:
        self._cohorts.recorder = recorder

    def join(self, job: SlotJob) -> None:
        """Train a job: it gets a slot at the next step boundary with a free one. Raises BaseModelUnavailable."""
        _ = self.layers  # loaded on the job's thread: an error is this job's own
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
        """Ask the engine to release a job: once its evaluation is finished, with a last snapshot.

        is_abandoned: its result is not wanted any more, so release it at the next step boundary.
        """
        with self._changed:
            job.is_abandoned, job.leaving = is_abandoned, True
            self._changed.notify_all()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs: without it, no job that has joined ever ends."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def close(self) -> None:
        """End the thread and wait for it, so that it holds nothing of the base. No job may be left."""
        with self._changed:
            self._is_closing = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, no cohort steps, and the memory that steps keep for themselves is free."""
        with self._changed:
            self._pauses += 1
            self._changed.wait_for(lambda: not self._is_stepping)
        try:
            self._cohorts.free_memory()
            yield
        finally:
            with self._changed:
                self._pauses -= 1
                self._changed.notify_all()

    @contextmanager
    def parked(self) -> Iterator[None]:
        """Inside, no cohort steps, and the denoiser is in the host's memory: the device has room to encode.

        Raises HandOver if the denoiser cannot be moved back, now or in an earlier call. Then every job of the engine
        ends with HandOver, and the engine takes no other: the base model must be loaded again.
        """
        with self._parking, self.paused():
            if self.failure is not None:
                raise self.failure
            try:
                with self.base.parked():
                    yield
            except BaseException as error:
                if not self.base.is_parked:
                    raise
                failure = HandOver("the base model must be loaded again: its denoiser could not be moved back")
                with self._changed:
                    self.failure = failure
                log.warning("the denoiser cannot be moved back to %s: its jobs are handed over", self.base.device)
                if is_device_error(error):
                    raise
                raise failure from without_frames(error)

    # ---- the thread ----

    def _run(self) -> None:
        try:
            make_current(self.base.device)
            while self._admit():
                for cohort in self._cohorts.all:
                    error = self._advance(cohort)
                    if error is not None:
                        self._recover(cohort, error)
                self._evaluations.advance()
                self._end_round()
            if self.failure is not None:
                self._hand_over_all(self.failure)
        except BaseException as error:
            log.exception("the engine stops")
            self._fail_all(without_frames(error))

    def _admit(self) -> bool:
        """Give slots to waiting jobs, and begin a round; False if the thread is to end.

        A job that asks to leave before it has a slot is released at once.
        """
        with self._changed:
            while self._pauses or not (self._waiting or self._cohorts):
                has_news = not self._is_closing and self._changed.wait(_IDLE_S)
                if not (has_news or self._pauses or self._waiting or self._cohorts):
                    self._thread = None
                    return False
            if self.failure is not None:
                return False
            still_waiting = []
            for job in self._waiting:
                if job.leaving:
                    job.end()
                elif not self._cohorts.seat(job):
                    still_waiting.append(job)
            if len(still_waiting) < len(self._waiting):
                for cohort in self._cohorts.all:
                    log.info("%d job(s) in %d slot(s), %s", len(cohort), len(cohort.jobs), cohort.shape)
            self._waiting = still_waiting
            self._is_stepping = True
            return True

    def _end_round(self) -> None:
        with self._changed:
            self._is_stepping = False
            self._changed.notify_all()

    def _advance(self, cohort: Cohort) -> BaseException | None:
        """One step of a cohort, and what is due after it. Returns the error, if there is one."""
        try:
            self._release(cohort)
            if not len(cohort):
                self._cohorts.remove(cohort)
                return None
            self._cohorts.shrink(cohort, is_awaited=any(job.shape == cohort.shape for job in self._waiting))
            self._evaluations.hold(cohort)
            if cohort.ready:
                self._cohorts.step(cohort)
            self._evaluations.attend(cohort)
            self._release(cohort)
        except Exception as error:
            if not is_out_of_memory(error):
                log.exception("a step failed")
            return without_frames(error)
        return None

    def _release(self, cohort: Cohort) -> None:
        """Empty the slots of jobs that are done or asked to leave, once their evaluations are finished."""
        for job in cohort.jobs:
            if job is None:
                continue
            job.is_parting = job.is_parting or self._is_asked_to_leave(job)
            is_over = job.is_done or job.is_parting
            if is_over and (job.is_abandoned or not self._evaluations.is_pending(job)):
                cohort.read_losses()
                job.snapshots.append(cohort.copied(job))
                cohort.unseat(job)
                # If the job itself did not ask, another process of this training was asked to stop.
                job.end(None if job.is_done or job.leaving else HandOver())

    def _is_asked_to_leave(self, job: SlotJob) -> bool:
        if not distributed.is_shared():
            return job.leaving
        return job.step % distributed.STOP_EVERY == 0 and distributed.any_of(job.leaving, self.base.device)

    def _end_alone(self, job: SlotJob, error: BaseException) -> None:
        """End one job with an error; the others continue."""
        self._cohorts.unseat(job)
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
        job.end(error)

    # ---- errors: handled outside the `except` block, in which the tensors of the step are still referenced ----

    def _recover(self, cohort: Cohort, error: BaseException) -> None:
        """If memory ran out, continue with fewer slots or gradient checkpointing; else end the cohort's jobs.

        Raises the error of a device that failed, which ends the thread: nothing can be trained on it any more.
        """
        if is_device_error(error):
            raise error
        if not is_out_of_memory(error):
            self._drop(cohort, error)
            return
        try:
            has_room = self._cohorts.make_room(cohort, self._requeue)
        except Exception as second:  # noqa: BLE001 - there is not even memory to make room
            failure = without_frames(second)
        else:
            if not has_room:
                self._drop(cohort, error)
            return
        if is_device_error(failure):
            raise failure
        self._drop(cohort, failure)

    def _requeue(self, job: SlotJob) -> None:
        with self._changed:
            self._waiting.insert(0, job)

    def _drop(self, cohort: Cohort, error: BaseException) -> None:
        """End a cohort's jobs with an error. Does not use the device."""
        self._cohorts.remove(cohort)
        for job in cohort.jobs:
            if job is not None:
                job.end(error)

    def _hand_over_all(self, reason: BaseException) -> None:
        """End every job with `reason`, with a snapshot of its state. Only the denoiser is unusable, not the LoRAs.

        A job with a pending evaluation gets no snapshot: it resumes from a checkpoint before the evaluation.
        """
        for cohort in self._cohorts.all:
            try:
                cohort.read_losses()
                for job in cohort.jobs:
                    if job is not None and not self._evaluations.is_pending(job):
                        job.snapshots.append(cohort.copied(job))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("no memory for a last checkpoint: jobs resume from the one before")
        self._end_all(reason)

    def _fail_all(self, error: BaseException) -> None:
        """End every job with the error, and the engine. Does not use the device."""
        failed = is_device_error(error)
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        if failed:  # report first: a job that is tried again must not come back to this worker
            device_failure.report(reason)
            error = DeviceLost(f"the device {self.base.device} failed ({reason}); another worker continues")
        self._end_all(error)

    def _end_all(self, failure: BaseException) -> None:
        """End every job, and the engine. Does not use the device."""
        with self._changed:
            self.failure = failure
            for job in [*self._waiting, *self._cohorts.jobs]:
                job.end(failure)
            # Only now: a job that finds no thread and has not ended takes the thread for lost.
            self._waiting, self._thread, self._is_stepping = [], None, False
            self._changed.notify_all()
        self._cohorts.clear()
