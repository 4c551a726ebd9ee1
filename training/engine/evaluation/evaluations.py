"""Evaluations (validation and previews) in units, one between two steps, so that no job waits for a whole evaluation.

When an evaluation is due, the LoRA of the job is copied as it is after that step, and the job continues. The job is
held only after its last step, while it leaves, while `patience` may still end it at that step, and if its next
evaluation is due before this one is finished. Until an evaluation is finished, later checkpoints of the job are held
back, up to a few. So a job that resumes from a checkpoint has finished all evaluations before it, and repeats those
that were interrupted.
"""

from collections.abc import Callable, Generator
from dataclasses import replace

import torch

from training.engine import distributed
from training.engine.cohorts.cohort import Cohort
from training.engine.cohorts.slot_job import SlotJob, Snapshot
from training.engine.evaluation.validation import draw_previews, is_best, is_over, validation_loss
from training.engine.faults import is_device_error, is_out_of_memory, without_frames

MAX_HELD_BACK = 3  # checkpoints of a job before the job is held: each is a copy on the device
CUDA_BATCH_SIZE = 4  # pictures in a forward pass: without a backward pass, they take less memory than a step


class Evaluation:
    """One evaluation of a job as it was after `step` steps."""

    def __init__(self, cohort: Cohort, job: SlotJob) -> None:
        self.job, self.step = job, job.step
        # Nothing to validate on; or before the first step, when only the base model's previews are due.
        self.is_validated = job.validation_set is None or not job.step
        self.checkpoints: list[Snapshot] = []  # held back until this evaluation is finished
        self._family, self._base, self._layers, self._layout = cohort.family, cohort.base, cohort.layers, cohort.layout
        self._weights, self._loras = cohort.loras_of(job)
        # A picture's bits depend on its batch, so each picture is alone where results must be reproducible.
        is_exact = self._base.device.type != "cuda" or torch.are_deterministic_algorithms_enabled()
        self._units = self._work(1 if is_exact or job.run.deterministic else CUDA_BATCH_SIZE)
        self._may_restart = True
        # What units have finished, until `commit`.
        self._loss: float | None = None
        self._latents: list[torch.Tensor] | None = None
        self.advance()  # to the first unit

    @property
    def device(self) -> torch.device:
        """The device that the units run on."""
        return self._base.device

    def restart(self) -> bool:
        """Restart what is not finished, with one picture at a time; False if it was restarted before."""
        may, self._may_restart = self._may_restart, False
        if may:
            self._loss = self._latents = None
            self._units = self._work(1)
        return may

    def advance(self) -> bool:
        """Do one unit; returns whether it was the last one. Changes nothing of the job: see `commit`."""
        with torch.no_grad(), self._layers.applying(self._loras):
            return next(self._units, True) is True

    def _work(self, batch_size: int) -> Generator[None, None, None]:
        """All units, each after a `yield`."""
        job, family, base = self.job, self._family, self._base
        if job.validation_set is not None and not self.is_validated:
            self._loss = yield from validation_loss(family, base, job.validation_set, batch_size)
        if job.preview_prompts is not None:
            self._latents = yield from draw_previews(family, base, job.preview_prompts, batch_size)

    def commit(self) -> None:
        """Give the job what the units have finished. The job may end earlier because of its validation loss."""
        if self._loss is not None and not self.is_validated:
            self._record_validation(self._loss)
        if self._latents is not None:
            self.job.previews.append((self.step, self._latents))
            self._latents = None

    def _record_validation(self, loss: float) -> None:
        """Give the job its validation loss: it may be the best so far, or end the job early."""
        job, asked = self.job, self.job.run.spec.validation
        job.validation_losses.append((self.step, loss))
        if asked.keep_best and is_best(job.validation_losses):
            job.best = self._layout.read(self._weights, job.run.spec.ranks)
        if is_over(job.validation_losses, asked.patience):
            job.total = self.step
        self.is_validated = True

    def release_checkpoints(self) -> None:
        """Give the job the checkpoints that were held back, with the results of the evaluation."""
        results = {"validation_losses": tuple(self.job.validation_losses), "best": self.job.best}
        self.job.snapshots += [replace(one, rest={**one.rest, **results}) for one in self.checkpoints]
        self.job.news.set()


class Evaluations:
    """The evaluations of one engine that are in progress. Used by the engine's thread alone."""

    def __init__(self, end: Callable[[SlotJob, BaseException], None], free_memory: Callable[[], None]) -> None:
        """end: ends one job with an error. free_memory: returns unused memory to the device."""
        self._end, self._free_memory = end, free_memory
        self._pending: dict[SlotJob, Evaluation] = {}

    def attend(self, cohort: Cohort) -> None:
        """After a step, start the evaluations and copy the checkpoints that are due."""
        attended = [
            job for job in cohort.jobs if job is not None and job.attended != job.step and self._begin(cohort, job)
        ]
        for job in attended:
            if job.step and not job.is_done and job.step % job.checkpoint_every == 0:
                self._keep(job, cohort.copied(job))
                job.news.set()
            elif job.step == job.start + 1:
                job.news.set()  # report the first step at once: it shows that the training runs

    def hold(self, cohort: Cohort) -> None:
        """Set for each job whether it skips the next step to wait for an evaluation."""
        for job in cohort.jobs:
            if job is not None:
                job.is_held = self._holds(job)

    def is_pending(self, job: SlotJob) -> bool:
        """Whether an evaluation of a job is due or in progress."""
        return job in self._pending or job.attended != job.step

    def _holds(self, job: SlotJob) -> bool:
        if job.attended != job.step:  # an evaluation is due that could not start yet
            return True
        evaluation = self._pending.get(job)
        if evaluation is None:
            return False
        may_end_it = job.run.spec.validation.patience > 0 and not evaluation.is_validated
        return job.is_done or job.is_parting or may_end_it or len(evaluation.checkpoints) >= MAX_HELD_BACK

    def _begin(self, cohort: Cohort, job: SlotJob) -> bool:
        """Start the evaluation that is due after the current step of a job, if any.

        False if it cannot start yet, or if the job has ended with an error.
        """
        if job.is_evaluation_due:
            if job in self._pending:
                return False
            failure: BaseException | None = None
            try:
                self._pending[job] = Evaluation(cohort, job)
            except Exception as error:  # noqa: BLE001 - any error is this job's own: the others continue
                failure = without_frames(error)
            if failure is not None:
                # If memory ran out while others are evaluated, try again when one of them is finished.
                if not (is_out_of_memory(failure) and self._pending):
                    self._fail(job, failure)
                return False
        job.attended = job.step
        return True

    def _keep(self, job: SlotJob, checkpoint: Snapshot) -> None:
        """Give a job a checkpoint, or hold it back until the evaluation before it is finished."""
        evaluation = self._pending.get(job)
        if evaluation is not None:
            evaluation.checkpoints.append(checkpoint)
        else:
            job.snapshots.append(checkpoint)

    def drop(self, job: SlotJob) -> None:
        """Forget the evaluation of a job, if one is in progress."""
        self._pending.pop(job, None)

    def advance(self) -> None:
        """Do one unit of each evaluation. An error ends only its job; out of memory, only the second time.

        Raises the error of a device that failed.
        """
        for job, evaluation in list(self._pending.items()):
            if job.gone:
                self.drop(job)
                continue
            is_last, failure = self._advance(evaluation)
            # Several processes of one training must do the same units: if memory ran out in one, all begin again.
            lacks_memory = distributed.any_of(failure is not None and is_out_of_memory(failure), evaluation.device)
            if failure is not None or lacks_memory:
                self._recover(job, evaluation, failure, lacks_memory=lacks_memory)
            else:
                self._commit(evaluation, is_last=is_last)

    def _advance(self, evaluation: Evaluation) -> tuple[bool, BaseException | None]:
        try:
            return evaluation.advance(), None
        except Exception as error:  # noqa: BLE001 - any error is this job's own: the others continue
            return False, without_frames(error)

    def _commit(self, evaluation: Evaluation, *, is_last: bool) -> None:
        failure: BaseException | None = None
        try:
            evaluation.commit()
        except Exception as error:  # noqa: BLE001 - any error is this job's own: the others continue
            failure = without_frames(error)
        if failure is not None:
            self._fail(evaluation.job, failure)
        elif is_last:
            self.drop(evaluation.job)
            evaluation.release_checkpoints()

    def _recover(
        self, job: SlotJob, evaluation: Evaluation, failure: BaseException | None, *, lacks_memory: bool
    ) -> None:
        """Called outside the `except` block, in which the tensors of the unit are still referenced."""
        if lacks_memory:
            self._free_memory()
            if evaluation.restart():
                return
        self._fail(job, failure or torch.OutOfMemoryError("another process of this training ran out of memory"))

    def _fail(self, job: SlotJob, failure: BaseException) -> None:
        if is_device_error(failure):
            raise failure
        self.drop(job)
        self._end(job, failure)
