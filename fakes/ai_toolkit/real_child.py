"""The child process of the `real` trainer: reads a job from standard input and writes progress to a file."""

import hashlib
import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from core.errors import ImprintError
from fakes.ai_toolkit.lora import convert_our_lora, family_of_config
from training.checkpoint_folder import FolderCheckpoints
from training.ports import Example, Progress, TrainRun
from training.spec import TrainSpec


class Reporter:
    """A `training.ports.Control` that writes each report as a line of JSON."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def check(self) -> None:
        return

    def report(self, progress: Progress) -> None:
        pace = progress.seconds_per_step or 1.0
        line = {"step": progress.step, "loss": progress.loss, "seconds_per_step": max(pace, 1e-3)}
        self._file.write(json.dumps(line) + "\n")


def spec_from_config(process: dict[str, Any], total: int) -> TrainSpec:
    """The recipe from a job's config."""
    train, network = process["train"], process["network"]
    return TrainSpec(
        base_model="fake/base-model",
        family=family_of_config(process),
        trigger_word="trained",
        rank=network["linear"],
        alpha=network["linear_alpha"],
        learning_rate=train["lr"],
        batch_size=train["batch_size"],
        resolution=process["datasets"][0]["resolution"][0],
        epochs=10,
        max_steps=total,
        seed=process["sample"]["seed"],
    )


def example_of(path: Path, caption: str) -> Example:
    with Image.open(path) as picture:
        width, height = picture.size
    return Example(path, caption, hashlib.sha256(path.read_bytes()).hexdigest(), width, height)


def main() -> int:
    """Train the job on the first line of standard input; returns the exit code."""
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    examples = [example_of(Path(path), caption) for path, caption in job["items"]]
    from training.backends.local import train  # torch takes seconds

    with tempfile.TemporaryDirectory(prefix="fake-pod-") as folder:
        run = TrainRun(
            job_id=job["name"],
            spec=spec_from_config(job["process"], job["total"]),
            examples=examples,
            dataset_sha256=hashlib.sha256(json.dumps(job["items"]).encode()).hexdigest(),
            base_model=job["base_model"],
            out=Path(folder) / "lora.safetensors",
            checkpoints=FolderCheckpoints(Path(folder) / "checkpoints"),
            control=Reporter(Path(job["progress"])),
            device="cpu",
        )
        try:
            train(run)
        except ImprintError as error:
            print(error.message, flush=True)
            return 1
        data = convert_our_lora(job["process"], job["name"], run.out.read_bytes(), step=job["total"])
    Path(job["out"]).write_bytes(data)
    return 0


def _end_with_parent() -> None:
    # Not sys.stdin: Python aborts at exit if a thread holds its lock.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
