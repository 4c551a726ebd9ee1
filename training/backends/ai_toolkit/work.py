"""What a training does with an ai-toolkit server. Each operation may be repeated, and goes on after a crash anywhere.

All raise BackendUnreachable (try again) and BackendFailed (do not).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.backends.ai_toolkit.answers import RemoteJob, Sample
from training.backends.ai_toolkit.server import Server
from training.ports import Example
from training.spec import TrainSpec

PREFIX = "imprint_"
NAME = re.compile(r"imprint_[a-z0-9_]{1,100}")

Status = Literal["queued", "running", "completed", "failed", "stopped"]


@dataclass(frozen=True)
class Order:
    """One training to be done on a server."""

    name: str  # from `remote_name`
    spec: TrainSpec
    examples: Sequence[Example]
    base_model: str  # a hub id, already looked up; a folder of ours is refused: the server cannot see it
    # z-image-turbo: the de-distilling adapter, as hub id and file: owner/name/file. None: ai-toolkit's own.
    training_adapter: str | None = None


@dataclass(frozen=True)
class Sighting:
    """How a job was seen."""

    status: Status
    step: int
    total: int | None
    loss: float | None  # newest that the server told; None if it told none this time
    seconds_per_step: float | None
    seconds_left: float | None
    info: str  # the server's own words, for operators; may quote what was sent, never a secret of ours
    log_offset: int  # hand it in the next time
    grew: bool  # the log, since the offset that was handed in
    samples: tuple[Sample, ...]  # all so far, in the order of their steps; () where the step did not move


def remote_name(job_id: str, attempt: int) -> str:
    """The name of a job's attempt on a server, for the job and for its dataset: unique, and ours by its prefix."""
    raise NotImplementedError


def submit(server: Server, order: Order) -> str:
    """Bring a training to the server and start it; gives the server's id.

    Goes on with what an earlier submission of the same name left behind: dataset, pictures, job, queue. A job that
    was already started is left alone, whatever became of it. Raises SpecInvalid for what ai-toolkit cannot do.
    """
    raise NotImplementedError


def look(server: Server, job: RemoteJob, log_offset: int = 0, step: int = 0) -> Sighting:
    """How `job` (from `server.jobs()`) goes.

    step: the one seen the last time. Beside the row that is at hand, at most two requests are made, none for a queued
    job: loss and samples where the step moved, else the log.
    """
    raise NotImplementedError


def collect(server: Server, name: str, remote_id: str, folder: Path, spec: TrainSpec) -> Path:
    """The finished file of a completed job, fetched into `folder`: its size and its hash are right.

    A download that broke off is gone on with. BackendFailed if the file is not there, or not whole.
    """
    raise NotImplementedError


def cancel(server: Server, name: str) -> None:
    """End a job, queued or running; absent or ended is fine. Its files stay until `clear`."""
    raise NotImplementedError


def clear(server: Server, name: str) -> None:
    """Leave nothing of a job on the server: row, output and dataset go. Absent is fine.

    A job that still runs is ended first. Raises BackendFailed for a name that is not ours.
    """
    raise NotImplementedError
