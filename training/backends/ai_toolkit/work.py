"""What a training does with an ai-toolkit server. Each operation may be repeated, and goes on after a crash anywhere.

All raise BackendUnreachable (try again) and BackendFailed (do not).
"""

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from core.errors import BackendFailed, BackendUnreachable
from training.backends.ai_toolkit import config
from training.backends.ai_toolkit.answers import COMPLETED, ERROR, QUEUED, RUNNING, STOPPED, RemoteJob, SampleImage
from training.backends.ai_toolkit.delivery import upload_dataset
from training.backends.ai_toolkit.server import ToolkitServer
from training.lora.safetensor import MAX_HEADER_BYTES, Malformed, read_header
from training.ports import Example
from training.spec import TrainSpec

PREFIX = "imprint_"
NAME = re.compile(r"imprint_[a-z0-9_]{1,100}")
GPU = "0"  # whose queue our jobs stand in

Status = Literal["queued", "running", "completed", "failed", "stopped"]
# The server's words, and ours. 'stopping' is in its types, though nothing writes it.
_STATUS: dict[str, Status] = {
    QUEUED: "queued",
    RUNNING: "running",
    "stopping": "running",
    COMPLETED: "completed",
    ERROR: "failed",
    STOPPED: "stopped",
}
_SPEED = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(iter/sec|sec/iter|it/s|s/it)")
_CHANGES = 5  # how often a job may change its status under our hands before we give up for now
_SETTLE_S = 0.2
_LOSSES = 100  # over how many steps the loss is averaged at most


@dataclass(frozen=True)
class RemoteTraining:
    """One training to be done on a server."""

    name: str  # from `remote_name`
    spec: TrainSpec
    examples: Sequence[Example]
    base_model: str  # a hub id, from `config.find_base_model`; a folder is refused: the server cannot see it
    # z-image-turbo: the de-distilling adapter, as hub id and file: owner/name/file. None: ai-toolkit's own.
    training_adapter: str | None = None


@dataclass(frozen=True)
class PollResult:
    """How a job was seen."""

    status: Status
    step: int
    total: int | None
    loss: float | None  # mean over the steps since the last look, 100 at most; None if the server told none this time
    seconds_per_step: float | None
    seconds_left: float | None
    info: str  # the server's own words, for operators; may quote what was sent, never a secret of ours
    log_offset: int  # hand it in the next time
    grew: bool  # the log, since the offset that was handed in
    samples: tuple[SampleImage, ...]  # all so far, in the order of their steps; () where the step did not move


def remote_name(job_id: str, attempt: int) -> str:
    """The name of a job's attempt on a server, for the job and for its dataset: unique, and ours by its prefix.

    Job ids are lower-case and random, so nobody guesses the paths that a server serves without a password.
    """
    name = f"{PREFIX}{job_id}_{attempt}"
    if not NAME.fullmatch(name):
        raise BackendFailed(f"{job_id[:60]!r} is no job id that a remote job could be named by")
    return name


def _nothing() -> None:
    return


def submit(server: ToolkitServer, training: RemoteTraining, check: Callable[[], None] = _nothing) -> str:
    """Bring a training to the server and start it; gives the server's id.

    check: called before the job is made and before it is started; what it raises ends the submission. A job that was
    started by somebody else meanwhile must not be started again: it would run twice.

    Goes on with what an earlier submission of the same name left behind: dataset, pictures, job, queue. A job that
    was already started is left alone, whatever became of it. Raises SpecInvalid for what ai-toolkit cannot do.
    """
    _check_name(training.name)
    config.check_base_model(training.base_model)
    job = server.jobs().get(training.name)
    if job is None:
        job = _create(server, training, check)
    if _is_fresh(job):
        check()
        job = _start(server, job)
    if job.status == QUEUED:
        # Also for a job that was queued before: whoever queued it may have died before this, and a queue stops by
        # itself whenever it has drained.
        server.start_queue(job.gpu_ids)
    return job.id


def _create(server: ToolkitServer, training: RemoteTraining, check: Callable[[], None]) -> RemoteJob:
    """The job's row, after its dataset is there, whole."""
    folders = server.folders()
    server.datasets()  # a fresh server makes its folder of datasets in this call, and cannot make one without
    dataset = server.create_dataset(training.name)
    if dataset != training.name:
        raise BackendFailed(f"the server made a dataset of another name than {training.name}")
    upload_dataset(server, dataset, training.examples)
    job_config = config.job_config(
        training.spec,
        training.name,
        folders,
        pictures=len(training.examples),
        base_model=training.base_model,
        training_adapter=training.training_adapter,
    )
    check()
    try:
        made = server.create_job(training.name, job_config, GPU)
    except BackendUnreachable:
        made = server.jobs().get(training.name)  # it may have been made, and only the answer was lost
        if made is None:
            raise
    found = made or server.jobs().get(training.name)
    if found is None:
        raise BackendUnreachable(f"the server says that there is a job {training.name}, and does not show it")
    return found


def _is_fresh(job: RemoteJob) -> bool:
    """Whether a job was made and never started. A started one that stopped has its `stop` set, or says what it did."""
    return job.status == STOPPED and not job.stop and job.step == 0 and not job.info


def _start(server: ToolkitServer, job: RemoteJob) -> RemoteJob:
    """Queue a fresh job; gives its row as it is then."""
    try:
        server.start(job.id)
    except BackendUnreachable:
        found = server.job(job.id)  # only the answer may have been lost
        if found is None or _is_fresh(found):
            raise
        return found
    found = server.job(job.id)
    if found is None:
        raise BackendFailed(f"the server lost the job {job.name} while it was started")
    return found


# ---- looking ---------------------------------------------------------------------------------------------------------


def poll(server: ToolkitServer, job: RemoteJob, log_offset: int = 0, step: int = 0) -> PollResult:
    """How `job` (from `server.jobs()`) goes.

    step: the one seen the last time. Beside the row that is at hand, at most two requests are made, none for a queued
    job: loss and samples where the step moved, else the log.
    """
    status = _STATUS.get(job.status)
    if status is None:
        raise BackendFailed(f"the server has the job {job.name} in a status that we do not know")
    total = job.total
    loss: float | None = None
    samples: tuple[SampleImage, ...] = ()
    offset = log_offset
    if status == "completed" or (status == "running" and job.step != step):
        # The server gives the oldest points first: ask for the newest only.
        points = server.loss(job.id, max(step if step < job.step else 0, job.step - _LOSSES))
        loss = fmean(point.value for point in points) if points else None
        samples = tuple(server.samples(job.id))
    elif status == "running":
        offset = server.log(job.id, log_offset).offset
    pace = _seconds_per_step(job.speed) if status == "running" else None
    left = None if pace is None or total is None else max(0, total - job.step) * pace
    return PollResult(status, job.step, total, loss, pace, left, job.info, offset, offset != log_offset, samples)


def _seconds_per_step(speed: str) -> float | None:
    match = _SPEED.search(speed)
    if match is None or float(match[1]) == 0.0:
        return None
    return 1 / float(match[1]) if match[2] in ("iter/sec", "it/s") else float(match[1])


# ---- collecting ------------------------------------------------------------------------------------------------------


def collect(server: ToolkitServer, name: str, remote_id: str, folder: Path, spec: TrainSpec) -> Path:
    """The finished file of a completed job, fetched into `folder`: its size and its hash are right.

    A download that broke off is gone on with. BackendFailed if the file is not there, or not whole.
    """
    _check_name(name)
    found = server.job(remote_id)
    if found is None or found.name != name or found.status != COMPLETED:
        raise BackendFailed(f"the job {name} is not completed on the server: it has no file to fetch")
    # Checkpoints have a step in their name, the finished file has not.
    files = [file for file in server.files(remote_id) if re.split(r"[/\\]", file.path)[-1] == f"{name}.safetensors"]
    if not files or files[0].size == 0:
        raise BackendFailed(f"the job {name} is completed on the server, and left no {spec.family} LoRA file")
    file, path = files[0], folder / f"{name}.safetensors"
    for last in (False, True):
        server.download(file.path, path, file.size)
        if _is_whole(path):
            return path
        path.unlink()  # perhaps the beginning of one file and the end of another: once more from its first byte
        if last:
            break
    raise BackendFailed(f"the LoRA file of {name} is not what its own hash says, twice fetched")


def _is_whole(path: Path) -> bool:
    """Whether a file's data has the hash that its metadata tells."""
    with path.open("rb") as file:
        try:
            header, start = read_header(file.read(8 + MAX_HEADER_BYTES))
        except Malformed:
            return False
        metadata = header.get("__metadata__")
        model_hash = metadata.get("sshs_model_hash") if isinstance(metadata, dict) else None
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest() == model_hash


# ---- ending ----------------------------------------------------------------------------------------------------------


def cancel(server: ToolkitServer, name: str) -> None:
    """End a job, queued or running; absent or ended is fine. Its files stay until `clear`."""
    _check_name(name)
    for _ in range(_CHANGES):
        job = server.jobs().get(name)
        if job is None or _STATUS.get(job.status) not in ("queued", "running"):
            return
        if job.status == QUEUED or not _stopped(server, job):
            # `stop` leaves a queued job queued, and a running one whose process is gone running: this writes it down.
            # A trainer that begins just now sees the mark, and ends itself at its first step.
            server.mark_stopped(job.id)
        time.sleep(_SETTLE_S)
    raise BackendUnreachable(f"the job {name} does not stay stopped on the server")


def _stopped(server: ToolkitServer, job: RemoteJob) -> bool:
    """Ask a running job to stop; whether its row says then that it did."""
    server.stop(job.id)
    found = server.job(job.id)
    return found is None or found.status not in (RUNNING, QUEUED)


def clear(server: ToolkitServer, name: str) -> None:
    """Leave nothing of a job on the server: row, output and dataset go. Absent is fine.

    A job that still runs is ended first. Raises BackendFailed for a name that is not ours.
    """
    _check_name(name)  # the server removes the folder of that name whatever it is; "" would be all outputs
    cancel(server, name)
    job = server.jobs().get(name)
    if job is not None:
        server.delete_job(job.id)
    if name in server.datasets():
        server.delete_dataset(name)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise BackendFailed(f"{name[:60]!r} is no name of a remote job of ours")
