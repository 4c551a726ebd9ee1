"""Check, smooth and report the losses of a training."""

import math
import time

from core.errors import LossNotFinite
from training.ports import Control, Progress

REPORT_EVERY_S = 1.0
_SMOOTHING = 0.95


class Meter:
    """Tracks the losses of one training, on the thread of its job."""

    def __init__(self, control: Control, *, start: int, total: int, loss: float) -> None:
        self._control, self._start, self._total = control, start, total
        self._since_report: list[float] = []
        self._began = self._reported_at = time.monotonic()
        self._reported = start
        self.loss = loss  # smoothed: the loss of a single step is noisy
        self._smoothed = {start: loss}  # by step, for checkpoints that may still be saved
        self.validation_loss: float | None = None  # of the last validation
        self._reported_validation_loss: float | None = None
        self._fresh = start == 0

    def add(self, done: int, loss: float) -> None:
        """Add the loss of step number `done`. Raises LossNotFinite: later steps would be useless."""
        if not math.isfinite(loss):
            raise LossNotFinite(
                f"the loss of step {done} of {self._total} is {loss}: try a lower learning rate, or leave out odd "
                "pictures",
                {"step": done},
            )
        self._since_report.append(loss)
        self.loss = loss if self._fresh else _SMOOTHING * self.loss + (1 - _SMOOTHING) * loss
        self._smoothed[done] = self.loss
        self._fresh = False

    def loss_after(self, step: int) -> float:
        """The smoothed loss after a step, for its checkpoint. Forgets earlier steps."""
        self._smoothed = {done: loss for done, loss in self._smoothed.items() if done >= step}
        return self._smoothed[step]

    def add_validation_loss(self, done: int, loss: float) -> None:
        """Add the validation loss after step number `done`. Raises LossNotFinite."""
        if not math.isfinite(loss):
            raise LossNotFinite(f"the validation loss after step {done} is {loss}: try a lower learning rate")
        self.validation_loss = loss

    def report(self, done: int, *, is_end: bool = False) -> None:
        """Report that `done` steps are done, at most once a second."""
        due = is_end or time.monotonic() - self._reported_at >= REPORT_EVERY_S
        is_news = done > self._reported or (is_end and self.validation_loss != self._reported_validation_loss)
        if is_news and (due or done == self._total or self._reported == self._start):
            now = time.monotonic()
            per_step = (now - self._began) / (done - self._start)
            mean = sum(self._since_report) / len(self._since_report) if self._since_report else self.loss
            self._since_report.clear()
            self._reported, self._reported_at, self._reported_validation_loss = done, now, self.validation_loss
            total = done if is_end else self._total
            left_s = per_step * (total - done)
            self._control.report(Progress(done, total, mean, left_s, per_step, self.validation_loss))
