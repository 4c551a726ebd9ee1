"""Losses read, judged and told, without making the device wait for it."""

import math
import time
from collections import deque

from torch import Tensor

from core.errors import LossNotFinite
from training.ports import Control, Progress

REPORT_EVERY_S = 1.0
_SMOOTHING = 0.95


class Meter:
    """Follows one training. On CUDA a loss is read two steps late, when it is ready anyway; on a CPU at once."""

    def __init__(self, control: Control, *, start: int, total: int, loss: float, arrears: int) -> None:
        self._control, self._start, self._total, self._arrears = control, start, total, arrears
        self._pending: deque[tuple[int, Tensor]] = deque()
        self._since_report: list[float] = []
        self._began = self._told_at = time.monotonic()
        self._told = start
        self.loss = loss  # smoothed: of a single step it says little
        self._fresh = start == 0

    def add(self, done: int, loss: Tensor) -> None:
        """After `done` steps: note the loss of the last one, and report when it is time. Raises LossNotFinite."""
        self._pending.append((done, loss))
        while len(self._pending) > self._arrears:
            self._read()
        # The first step is told at once, so that nobody takes a training for stuck.
        due = time.monotonic() - self._told_at >= REPORT_EVERY_S
        if due or done == self._total or self._told == self._start:
            self._report(done)

    def settle(self) -> None:
        """Read what is still in arrears. Raises LossNotFinite: nothing that follows such a loss is worth keeping."""
        while self._pending:
            self._read()

    def _read(self) -> None:
        step, tensor = self._pending.popleft()
        loss = float(tensor)
        if not math.isfinite(loss):
            raise LossNotFinite(
                f"the loss of step {step} of {self._total} is {loss}: try a lower learning rate, or leave out odd "
                "pictures",
                {"step": step},
            )
        self._since_report.append(loss)
        self.loss = loss if self._fresh else _SMOOTHING * self.loss + (1 - _SMOOTHING) * loss
        self._fresh = False

    def _report(self, done: int) -> None:
        if not self._since_report or done == self._total:
            self.settle()
        now = time.monotonic()
        per_step = (now - self._began) / (done - self._start)
        mean = sum(self._since_report) / len(self._since_report) if self._since_report else self.loss
        self._since_report.clear()
        self._told, self._told_at = done, now
        self._control.report(Progress(done, self._total, mean, per_step * (self._total - done), per_step))
