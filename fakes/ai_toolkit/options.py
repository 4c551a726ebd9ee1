"""What a fake server is told when it starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class FakeToolkitOptions:
    """`folder` holds all that the server keeps; what is in it from an earlier start is found again."""

    folder: Path
    token: str | None = None
    trainer: Literal["quick", "real"] = "quick"
    base_model: Path | None = None  # for `real`: diffusers' layout; whatever a job names is trained on this
    seconds_per_step: float = 0.05  # of `quick`
    loading_s: float = 0.2  # from a job's start to its first step
    tick_s: float = 0.1  # how often the worker looks; a real one does every second
    slots: int = 1  # jobs of one queue at one time; a real one trains one
    gpu: str = "NVIDIA GeForce RTX 4090"
    old_api: bool = False  # as before 2025-10 and 2026-07: no queues, other shapes
    faults: int | None = None  # seed of what goes wrong; None: nothing does, unless it is scripted
    hang_s: float = 20.0  # how long a hanging request hangs
    ready_after_s: float = 0.0  # until then a proxy answers 502 in its place
    vanish_after_s: float | None = None  # then the whole process is gone, without a word
    journal: Path | None = None  # one JSON line for each request
