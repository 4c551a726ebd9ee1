"""The worker of the fake server: starts jobs from running queues and drives their trainers."""

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import cast

from fakes.ai_toolkit import quick, real
from fakes.ai_toolkit.faults import FaultInjector
from fakes.ai_toolkit.options import FakeToolkitOptions
from fakes.ai_toolkit.rows import JobRows, Row
from fakes.ai_toolkit.task import ProcessFailed, TrainerJob

Trainer = Callable[[TrainerJob, FakeToolkitOptions], Iterator[None]]
_TRAINERS: dict[str, Trainer] = {"quick": quick.train_quickly, "real": real.train_with_our_loop}


@dataclass
class TrainerRun:
    """A running trainer."""

    task: TrainerJob
    training: Iterator[None]
    fate: str | None

    def close(self) -> None:
        """End the trainer at once."""
        cast("Generator[None]", self.training).close()


class QueueWorker:
    """Checks the queues every `tick_s` on its own thread."""

    def __init__(self, rows: JobRows, options: FakeToolkitOptions, faults: FaultInjector) -> None:
        self.rows, self.options, self.faults = rows, options, faults
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
        """Start jobs while slots are free; stop an empty queue."""
        busy = self.rows.jobs("gpu_ids = ? AND status IN ('running', 'stopping')", gpu_ids)
        if not running:
            for row in busy:
                self.rows.change(row["id"], return_to_queue=1, info="Stopping job...")
            return
        # A job left at `running` occupies its slot for ever, as on a real server.
        waiting = self.rows.jobs("gpu_ids = ? AND status = 'queued'", gpu_ids)
        free = self.options.slots - len(busy)
        for row in waiting[: max(0, free)]:
            self._begin(row)
        if not busy and not waiting:
            self.rows.run_queue(gpu_ids, False)

    def _begin(self, row: Row) -> None:
        self.rows.change(row["id"], status="running", stop=0, return_to_queue=0, info="Starting job...")
        try:
            task = TrainerJob(self.rows, row)
        except (KeyError, TypeError, ValueError, IndexError):
            return  # a real worker crashes on such a config, and the row stays unchanged
        fate = self.faults.fate(task.name)
        options = self.options
        if fate == "slow":
            options = FakeToolkitOptions(**{**vars(options), "loading_s": options.loading_s * 10})
        task.begin()
        self.rows.change(row["id"], pid=1_000_000 + len(self.runs), info="Starting")
        self.runs[task.id] = TrainerRun(task, _TRAINERS[options.trainer](task, options), fate)

    # ---- trainers ----

    def _go_on(self, run: TrainerRun, row: Row | None) -> bool:
        """Run a trainer for a moment; returns whether it continues."""
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
        except (ProcessFailed, KeyError, TypeError, ValueError, OSError) as error:
            if self.rows.job(task.id) is not None:  # otherwise the job was deleted meanwhile
                task.end("error", str(error) or type(error).__name__)
            return False
        return True

    def _apply_fate(self, run: TrainerRun) -> bool:
        """Apply the fate of a job, half-way through; returns whether it continues."""
        if run.fate == "stall":
            return True
        if run.fate == "error":
            run.task.end("error", "CUDA error: an illegal memory access was encountered")
        return False  # `die` leaves the row at `running`
