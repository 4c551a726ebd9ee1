"""The worker of a fake server: starts what is queued in queues that run, and keeps its trainers going."""

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fakes.ai_toolkit import quick, real
from fakes.ai_toolkit.faults import FaultInjector
from fakes.ai_toolkit.options import FakeToolkitOptions
from fakes.ai_toolkit.rows import JobRows, Row
from fakes.ai_toolkit.task import TrainerJob, TrainingFailed

Trainer = Callable[[TrainerJob, FakeToolkitOptions], Iterator[None]]
_TRAINERS: dict[str, Trainer] = {"quick": quick.train_quickly, "real": real.train_with_our_loop}


@dataclass
class TrainerRun:
    """One trainer at work."""

    task: TrainerJob
    training: Iterator[None]
    fate: str | None

    def close(self) -> None:
        """End the trainer, at once."""
        cast("Generator[None]", self.training).close()


class QueueWorker:
    """Looks every `tick_s`, on a thread of its own."""

    def __init__(
        self, rows: JobRows, options: FakeToolkitOptions, faults: FaultInjector, outputs: Callable[[], Path]
    ) -> None:
        self.rows, self.options, self.faults, self.outputs = rows, options, faults, outputs
        self.runs: dict[str, TrainerRun] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="fake-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        for run in self.runs.values():
            run.close()

    def _loop(self) -> None:
        while not self._end.wait(self.options.tick_s):
            for queue in self.rows.queues():
                self._serve(str(queue["gpu_ids"]), bool(queue["is_running"]) or self.options.old_api)
            rows = {row["id"]: row for row in self.rows.jobs("status = 'running' OR stop = 1 OR return_to_queue = 1")}
            for job_id, run in list(self.runs.items()):
                if not self._go_on(run, rows.get(job_id) or self.rows.job(job_id)):
                    run.close()
                    del self.runs[job_id]

    # ---- queues ----

    def _serve(self, gpu_ids: str, running: bool) -> None:
        """Start what may start; a queue that has drained stops by itself."""
        busy = self.rows.jobs("gpu_ids = ? AND status IN ('running', 'stopping')", gpu_ids)
        if not running:
            for row in busy:
                self.rows.change(row["id"], return_to_queue=1, info="Stopping job...")
            return
        # A row that was left at `running` holds its place for ever, whether anything runs or not.
        waiting = self.rows.jobs("gpu_ids = ? AND status = 'queued'", gpu_ids)
        free = self.options.slots - len(busy)
        for row in waiting[: max(0, free)]:
            self._begin(row)
        if not busy and not waiting:
            self.rows.run_queue(gpu_ids, False)

    def _begin(self, row: Row) -> None:
        self.rows.change(row["id"], status="running", stop=0, return_to_queue=0, info="Starting job...")
        try:
            task = TrainerJob(self.rows, row, self.outputs())
        except (KeyError, TypeError, ValueError, IndexError):
            return  # a real worker breaks on such a config, and the row stays as it is
        fate = self.faults.fate(task.name)
        options = self.options
        if fate == "slow":
            options = FakeToolkitOptions(**{**vars(options), "loading_s": options.loading_s * 10})
        task.begin()
        self.rows.change(row["id"], pid=1_000_000 + len(self.runs), info="Starting")
        self.runs[task.id] = TrainerRun(task, _TRAINERS[options.trainer](task, options), fate)

    # ---- trainers ----

    def _go_on(self, run: TrainerRun, row: Row | None) -> bool:
        """Let a trainer work a little; whether it goes on after that."""
        task = run.task
        if row is None:
            return False
        if row["stop"]:
            task.end("stopped", "Job stopped")
            return False
        if row["return_to_queue"]:
            task.end("queued", "Job queued")
            return False
        if run.fate in ("die", "error", "stall") and task.step * 2 >= task.total:
            return self._apply_fate(run)
        try:
            if row["sample_now"]:
                self.rows.change(task.id, sample_now=0)
                task.draw()
            next(run.training)
        except StopIteration:
            return False
        except (TrainingFailed, KeyError, TypeError, ValueError, OSError) as error:
            if self.rows.job(task.id) is not None:  # else somebody deleted it under our hands
                task.end("error", str(error) or type(error).__name__)
            return False
        return True

    def _apply_fate(self, run: TrainerRun) -> bool:
        """Half-way its fate befalls a job."""
        if run.fate == "stall":
            return True
        if run.fate == "error":
            run.task.end("error", "CUDA error: an illegal memory access was encountered")
        return False  # to die is to leave the row at `running`
