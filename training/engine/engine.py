"""The engine of one loaded base model: a thread that steps every cohort on it, round by round.

Jobs come and go between steps, as requests do in a continuously batched inference server. Each job has a thread of its
own (the worker's task), which waits here, watches over it, and keeps its checkpoints; the engine's thread only steps.
"""

import logging
import threading
import time

import torch

from core import metrics
from core.errors import HandOver
from training.engine import distributed, recorder
from training.engine.cohort import LADDER, Cohort
from training.engine.lora_layers import LoRALayers
from training.engine.memory_layout import lay_out
from training.engine.recorder import Recorder
from training.engine.slot_job import Shape, SlotJob
from training.engine.slot_ladder import SlotLadder
from training.families.family import Base, Family

log = logging.getLogger(__name__)

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
        self._thread: threading.Thread | None = None

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
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def leave(self, job: SlotJob) -> None:
        """Ask for a job to be let go at the next step boundary; its last snapshot is then where it stands."""
        with self._changed:
            job.leaving = True
            self._changed.notify_all()

    # ---- the thread ----

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._cohorts and not self._changed.wait(_IDLE_S):
                    self._thread = None
                    return
                self._admit()
            for shape, cohort in list(self._cohorts.items()):
                try:
                    self._let_go(cohort)
                    if not len(cohort):
                        del self._cohorts[shape]
                        continue
                    begun = time.monotonic()
                    with metrics.stepping(self.family.name, self.base.device.type, len(cohort)):
                        cohort.step()
                    self._learn(cohort, time.monotonic() - begun)
                except (RuntimeError, MemoryError) as error:
                    self._recover(cohort, error)
                except Exception as error:  # noqa: BLE001 - the thread steps every job of the process: it must not end
                    self._fail(cohort, error)
                else:
                    try:
                        self._after(cohort)
                    except Exception as error:  # noqa: BLE001 - as above; the step is made, so nothing is to be recovered
                        self._fail(cohort, error)

    def _admit(self) -> None:
        """Seat the waiting jobs that find room. A job that asked to leave before it was seated has left."""
        still = []
        for job in self._waiting:
            if job.leaving:
                _gone(job)
            elif not self._seat(job):
                still.append(job)
        if len(still) < len(self._waiting):
            for cohort in self._cohorts.values():
                log.info("%d job(s) in %d slot(s), %s", len(cohort), len(cohort.jobs), cohort.shape)
        self._waiting = still

    def _seat(self, job: SlotJob) -> bool:
        cohort = self._cohorts.get(job.shape)
        top = min(self._tops.get(job.shape, LADDER[-1]), _rung(job.slots))
        try:
            if cohort is None:
                self._ladder.remember(job.run.encodings)
                slots = top if job.is_fixed else 1
                cohort = Cohort(self.family, self.base, self.layers, job.shape, slots, self.recorder)
            elif None not in cohort.jobs:
                now = len(cohort.jobs)
                slots = _rung(now + 1)
                if now >= top or not (self._ladder.pays(job.shape, slots) and self._ladder.fits(slots, now)):
                    return False
                cohort.resize(slots)
            cohort.seat(job)
        except Exception as error:  # noqa: BLE001 - of this job, whatever it is: the thread must not end
            job.error = error
            _gone(job)
            return True
        self._cohorts[job.shape] = cohort
        return True

    def _learn(self, cohort: Cohort, seconds: float) -> None:
        """Note what a step took, where slots follow the jobs; on a GPU the host is soon as slow as the device."""
        follow = [job for job in cohort.jobs if job is not None and job.slots > 1 and not job.is_fixed]
        if follow and len(self._cohorts) == 1:
            self._ladder.note(cohort.shape, len(cohort.jobs), seconds, follow[0].run.encodings)

    def _let_go(self, cohort: Cohort) -> None:
        for job in cohort.jobs:
            if job is not None and distributed.any_of(job.leaving, self.base.device):
                if not job.leaving:
                    job.error = HandOver()  # another process of this training was asked to stop
                cohort.read_losses()
                job.snapshots.append(cohort.copied(job))
                cohort.unseat(job)
                _gone(job)

    def _after(self, cohort: Cohort) -> None:
        """What a step brought: first news, checkpoints that are due, jobs that are done."""
        for job in cohort.jobs:
            if job is None or not self._looked(cohort, job):
                continue
            if job.step >= job.total:
                cohort.read_losses()
                job.snapshots.append(cohort.copied(job))
                cohort.unseat(job)
                _gone(job)
            elif job.step % job.checkpoint_every == 0:
                job.snapshots.append(cohort.copied(job))
                job.news.set()
            elif job.step == job.start + 1:
                job.news.set()  # the first step is told at once, so that nobody takes a training for stuck

    @staticmethod
    def _looked(cohort: Cohort, job: SlotJob) -> bool:
        """Take a look at a job if one is due; False if that failed, which ends this job alone."""
        if job.look_every and (job.step % job.look_every == 0 or job.step >= job.total):
            try:
                cohort.look(job)
            except Exception as error:  # noqa: BLE001 - of this job, whatever it is: the others go on
                job.error = error
                cohort.unseat(job)
                _gone(job)
                return False
            job.news.set()
        return True

    def _recover(self, cohort: Cohort, error: RuntimeError | MemoryError) -> None:
        """Out of memory: fewer slots, then activations reckoned anew; then, and after any other error, no more."""
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        cohort.stack.masters.grad = None
        if not is_memory:
            self._fail(cohort, error)
            return
        if self.base.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(cohort.jobs) > 1:
            fewer = len(cohort.jobs) // 2
            log.warning("out of memory with %d slots; going on with %d", len(cohort.jobs), fewer)
            self._tops[cohort.shape] = fewer
            with self._changed:
                self._waiting[:0] = self._stand_up(cohort, fewer)
            cohort.resize(fewer)
        elif not self.base.is_gradient_checkpointing:
            log.warning("out of memory; going on with gradient checkpointing")
            self.base.checkpoint_gradients(True)
        else:
            self._fail(cohort, error)

    @staticmethod
    def _stand_up(cohort: Cohort, seats: int) -> list[SlotJob]:
        """Take jobs out until `seats` are left; they wait, with their state, for a slot."""
        seated = [job for job in cohort.jobs if job is not None]
        for job in seated[seats:]:
            job.state = cohort.snapshot(job)
            cohort.unseat(job)
        return seated[seats:]

    def _fail(self, cohort: Cohort, error: BaseException) -> None:
        for job in cohort.jobs:
            if job is not None:
                job.error = error
                cohort.unseat(job)
                _gone(job)


def _gone(job: SlotJob) -> None:
    job.gone = True
    job.news.set()


def _rung(jobs: int) -> int:
    """The smallest shape of the ladder that seats so many jobs."""
    return next((rung for rung in LADDER if rung >= jobs), LADDER[-1])
