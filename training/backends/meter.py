"""Losses judged, smoothed and told."""

import math
import time

from core.errors import LossNotFinite
from training.ports import Control, Progress

REPORT_EVERY_S = 1.0
_SMOOTHING = 0.95


class Meter:
    """Follows one training from its own thread."""

    def __init__(self, control: Control, *, start: int, total: int, loss: float) -> None:
        self._control, self._start, self._total = control, start, total
        self._since_report: list[float] = []
        self._began = self._told_at = time.monotonic()
        self._told = start
        self.loss = loss  # smoothed: of a single step it says little
        self._smoothed = {start: loss}  # by step, as far back as a checkpoint may still be kept of
        self.validation_loss: float | None = None  # of the last look
        self._told_look: float | None = None
        self._fresh = start == 0

    def add(self, done: int, loss: float) -> None:
        """Note the loss of step number `done`. Raises LossNotFinite: nothing that follows is worth keeping."""
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
        """The smoothed loss after a step, for its checkpoint, which may be kept later. Forgets the steps before it."""
        self._smoothed = {done: loss for done, loss in self._smoothed.items() if done >= step}
        return self._smoothed[step]

    def add_validation_loss(self, done: int, loss: float) -> None:
        """Note the validation loss after step number `done`. Raises LossNotFinite."""
        if not math.isfinite(loss):
            raise LossNotFinite(f"the validation loss after step {done} is {loss}: try a lower learning rate")
        self.validation_loss = loss

    def report(self, done: int, *, is_end: bool = False) -> None:
        """Report that `done` steps are done, when it is time."""
        due = is_end or time.monotonic() - self._told_at >= REPORT_EVERY_S
        is_news = done > self._told or (is_end and self.validation_loss != self._told_look)
        if is_news and (due or done == self._total or self._told == self._start):
            now = time.monotonic()
            per_step = (now - self._began) / (done - self._start)
            mean = sum(self._since_report) / len(self._since_report) if self._since_report else self.loss
            self._since_report.clear()
            self._told, self._told_at, self._told_look = done, now, self.validation_loss
            total = done if is_end else self._total
            left_s = per_step * (total - done)
            self._control.report(Progress(done, total, mean, left_s, per_step, self.validation_loss))
