"""The progress bar of a training in a terminal, with loss and time left. Ctrl-C stops and saves a checkpoint."""

import signal
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from core.errors import HandOver
from training import ports


class ProgressBar:
    """A `training.ports.Control` for a terminal, to use in a `with` block."""

    def __init__(self, console: Console, total: int) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("loading", total=total, loss="")
        self._before: dict[int, Any] = {}
        self.stopped = False

    def __enter__(self) -> "ProgressBar":
        # The first Ctrl-C stops the training after a checkpoint at its next step; the second one ends it at once.
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        self._bar.update(self._task, description="stopping")
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def check(self) -> None:
        """Stop at this step if Ctrl-C was pressed."""
        if self.stopped:
            raise HandOver

    def report(self, progress: ports.Progress) -> None:
        """Update the bar."""
        left = f"{clock(progress.seconds_left)} left" if progress.seconds_left is not None else ""
        self._bar.update(
            self._task,
            description="training",
            completed=progress.step,
            loss=f"loss {progress.loss:.4f}  {left}",
        )


def clock(seconds: float) -> str:
    """`75` as `1:15`, `3675` as `1:01:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
