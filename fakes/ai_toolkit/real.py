"""The real trainer: Imprint's own training loop in a child process, on the uploaded pictures."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from fakes.ai_toolkit.options import FakeToolkitOptions
from fakes.ai_toolkit.task import ProcessFailed, TrainerJob

PROGRESS = ".progress"


def train_with_our_loop(task: TrainerJob, options: FakeToolkitOptions) -> Iterator[None]:
    """A generator that starts the child and reports its progress. Closing it ends the child. Raises ProcessFailed."""
    if options.base_model is None:
        raise ProcessFailed("the fake server has no base model")
    task.set_info("Loading model")
    progress = task.folder / PROGRESS
    progress.write_text("")
    job = {
        "process": dict(task.process),
        "name": task.name,
        "items": [[str(item.path), item.caption] for item in task.items()],
        "base_model": str(options.base_model.resolve()),
        "out": str(task.final),
        "progress": str(progress),
        "total": task.total,
    }
    with (task.folder / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "fakes.ai_toolkit.real_child"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )
    assert child.stdin is not None  # noqa: S101 - it is a pipe
    try:
        child.stdin.write(json.dumps(job).encode() + b"\n")
        child.stdin.flush()  # stays open: the child ends when it is closed
        yield from _follow(task, child, progress)
    finally:
        child.kill()
        child.wait()
        child.stdin.close()


def _follow(task: TrainerJob, child: "subprocess.Popen[bytes]", progress: Path) -> Iterator[None]:
    with progress.open() as lines:
        left = ""
        while True:
            ended = child.poll() is not None
            left += lines.read()
            *whole, left = left.split("\n")
            for line in whole:
                _pass_on(task, json.loads(line))
            if ended:
                break
            yield
    if child.returncode != 0:
        raise ProcessFailed(f"Job process terminated with exit code {child.returncode}.")
    task.draw()
    task.complete()


def _pass_on(task: TrainerJob, progress: dict[str, float]) -> None:
    before, step = task.step, int(progress["step"])
    task.set_info("Training")
    task.advance(step, [(step - 1, progress["loss"])], progress["seconds_per_step"])
    if any(task.draws_at(passed) for passed in range(before + 1, step + 1)):
        task.draw()
        task.set_info("Training")
