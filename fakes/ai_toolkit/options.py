"""The options of the fake ai-toolkit server."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class FakeToolkitOptions:
    """Options of a server. `folder` has all of its data; data of an earlier start is reused."""

    folder: Path
    token: str | None = None
    trainer: Literal["quick", "real"] = "quick"
    base_model: Path | None = None  # for `real`: a diffusers folder, used whatever base model a job names
    seconds_per_step: float = 0.05  # of `quick`
    loading_s: float = 0.2  # from a job's start to its first step
    tick_s: float = 0.1  # how often the worker checks the queue; a real one every second
    slots: int = 1  # concurrent jobs of one queue; a real one trains one
    gpu: str = "NVIDIA GeForce RTX 4090"
    old_api: bool = False  # as before 2025-10 and 2026-07: no queues, other formats
    faults: int | None = None  # seed of faults; None: only scripted ones
    hang_s: float = 20.0  # how long a hanging request hangs
    ready_after_s: float = 0.0  # before this a proxy sends 502
    vanish_after_s: float | None = None  # after this the process exits
    journal: Path | None = None  # one JSON line per request
