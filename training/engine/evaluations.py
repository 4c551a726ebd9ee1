"""Evaluations beside the training: each is done in units, one between two steps, so that no job waits for a whole one.

When an evaluation is due, the LoRA of the job is copied as it is after that step, and the job goes on. It is held only
where it must be: after its last step, while it leaves, while `patience` may still end it at that step, and when its
next evaluation is due before this one is finished. Its checkpoints are kept back meanwhile, up to a few: so a job that
goes on from one has done all evaluations before it, and does again those that were cut off.
"""

from collections.abc import Callable, Generator
from dataclasses import replace

import torch

from training.engine import distributed
from training.engine.cohort import Cohort
from training.engine.faults import is_device_error, is_out_of_memory, without_frames
from training.engine.slot_job import SlotJob, Snapshot
from training.engine.validation import draw_previews, is_best, is_over, validation_loss

MOST_KEPT_BACK = 3  # checkpoints of a job, before it is held: each is a copy on the device
CUDA_AT_ONCE = 4  # pictures in a forward pass: it keeps nothing for a backward pass, and so takes less than a step


class Evaluation:
    """The evaluation of a job as it was after `step` steps."""

    def __init__(self, cohort: Cohort, job: SlotJob) -> None:
        self.job, self.step = job, job.step
        self.is_measured = job.validation_set is None
        self.checkpoints: list[Snapshot] = []  # that are kept back
        self._family, self._base, self._layers, self._layout = cohort.family, cohort.base, cohort.layers, cohort.layout
        self._weights, self._loras = cohort.loras_of(job)
        # A picture's bits depend on the batch that it is in. So it is alone wherever the same bits are asked for.
        is_exact = self._base.device.type != "cuda" or torch.are_deterministic_algorithms_enabled()
        self._units = self._work(1 if is_exact or job.run.deterministic else CUDA_AT_ONCE)
        self._may_begin_again = not distributed.is_shared()  # several processes must stay in step
        self.advance()  # to the first unit

    def begin_again(self) -> bool:
        """Begin again what is not finished, with one picture at a time; False if that was tried before."""
        may, self._may_begin_again = self._may_begin_again, False
        if may:
            self._units = self._work(1)
        return may

    def advance(self) -> bool:
        """Do one unit; True if it was the last one."""
        with torch.no_grad(), self._layers.applying(self._loras):
            return next(self._units, True) is True

    def _work(self, at_once: int) -> Generator[None, None, None]:
        """All units, each behind a `yield`. Results go to the job, which may end earlier by them."""
        job, family, base = self.job, self._family, self._base
        if job.validation_set is not None and not self.is_measured:
            loss = yield from validation_loss(family, base, job.validation_set, at_once)
            self._note(loss)
        if job.preview_prompts is not None:
            drawn = yield from draw_previews(family, base, job.preview_prompts, at_once)
            job.drawn.append((self.step, drawn))

    def _note(self, loss: float) -> None:
        """Give the job its validation loss, and do what follows from it."""
        job, asked = self.job, self.job.run.spec.validation
        job.looks.append((self.step, loss))
        if asked.keep_best and is_best(job.looks):
            job.best = self._layout.read(self._weights, job.run.spec.rank)
        if is_over(job.looks, asked.patience):
            job.total = self.step
        self.is_measured = True

    def release(self) -> None:
        """Give the job the checkpoints that were kept back, with what the evaluation found."""
        found = {"looks": tuple(self.job.looks), "best": self.job.best}
        self.job.snapshots += [replace(kept, rest={**kept.rest, **found}) for kept in self.checkpoints]
        self.job.news.set()


class Evaluations:
    """All evaluations of one engine that are under way. Used by the engine's thread alone."""

    def __init__(self, end: Callable[[SlotJob, BaseException], None], free_memory: Callable[[], None]) -> None:
        """end: ends one job with an error. free_memory: gives the device back what nothing refers to."""
        self._end, self._free_memory = end, free_memory
        self._pending: dict[SlotJob, Evaluation] = {}

    def attend(self, cohort: Cohort) -> None:
        """Begin what is due after a step: evaluations, then checkpoints; and tell of the first step."""
        attended = [
            job for job in cohort.jobs if job is not None and job.attended != job.step and self._begin(cohort, job)
        ]
        for job in attended:
            if not job.is_done and job.step % job.checkpoint_every == 0:
                self._keep(job, cohort.copied(job))
                job.news.set()
            elif job.step == job.start + 1:
                job.news.set()  # the first step is told at once, so that nobody takes a training for stuck

    def hold(self, cohort: Cohort) -> None:
        """Say of each job whether it waits for an evaluation in the next step."""
        for job in cohort.jobs:
            if job is not None:
                job.is_held = self._holds(job)

    def is_pending(self, job: SlotJob) -> bool:
        """Whether an evaluation of a job is due or under way."""
        return job in self._pending or job.attended != job.step

    def _holds(self, job: SlotJob) -> bool:
        if job.attended != job.step:  # an evaluation is due that could not begin yet
            return True
        evaluation = self._pending.get(job)
        if evaluation is None:
            return False
        may_end_it = job.run.spec.validation.patience > 0 and not evaluation.is_measured
        return job.is_done or job.is_parting or may_end_it or len(evaluation.checkpoints) >= MOST_KEPT_BACK

    def _begin(self, cohort: Cohort, job: SlotJob) -> bool:
        """Begin the evaluation that is due after the step at which a job stands, if any.

        False if it cannot begin yet, or if the job has ended with an error.
        """
        if job.is_evaluation_due:
            if job in self._pending:
                return False
            failure: BaseException | None = None
            try:
                self._pending[job] = Evaluation(cohort, job)
            except Exception as error:  # noqa: BLE001 - of this job, whatever it is: the others go on
                failure = without_frames(error)
            if failure is not None:
                if not (is_out_of_memory(failure) and self._pending):  # else there is room once another has finished
                    self._fail(job, failure)
                return False
        job.attended = job.step
        return True

    def _keep(self, job: SlotJob, checkpoint: Snapshot) -> None:
        """Give a job a checkpoint, once all evaluations before it are finished."""
        evaluation = self._pending.get(job)
        if evaluation is not None:
            evaluation.checkpoints.append(checkpoint)
        else:
            job.snapshots.append(checkpoint)

    def drop(self, job: SlotJob) -> None:
        """Give up the evaluation of a job, if one is under way."""
        self._pending.pop(job, None)

    def advance(self) -> None:
        """Do one unit of each. An error ends the job alone; out of memory, only the second time.

        Raises the error of a device that failed.
        """
        for job, evaluation in list(self._pending.items()):
            if job.gone:
                self.drop(job)
                continue
            failure = self._advance(evaluation)
            if failure is not None:
                self._recover(job, evaluation, failure)

    def _advance(self, evaluation: Evaluation) -> BaseException | None:
        try:
            if evaluation.advance():
                self.drop(evaluation.job)
                evaluation.release()
        except Exception as error:  # noqa: BLE001 - of this job, whatever it is: the others go on
            return without_frames(error)
        return None

    def _recover(self, job: SlotJob, evaluation: Evaluation, failure: BaseException) -> None:
        """Outside of the `except` block, in which the tensors of the unit are still held."""
        if is_out_of_memory(failure):
            self._free_memory()
            if evaluation.begin_again():
                return
        self._fail(job, failure)

    def _fail(self, job: SlotJob, failure: BaseException) -> None:
        if is_device_error(failure):
            raise failure
        self.drop(job)
        self._end(job, failure)
