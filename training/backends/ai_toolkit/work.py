"""The operations of a training on an ai-toolkit server. Each may be repeated, also after a crash at any point.

All raise BackendUnreachable, which may be retried, and BackendFailed, which is final.
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
from core.outbound import wire
from training.backends.ai_toolkit import config
from training.backends.ai_toolkit.answers import COMPLETED, ERROR, QUEUED, RUNNING, STOPPED, RemoteJob, SampleImage
from training.backends.ai_toolkit.delivery import upload_dataset
from training.backends.ai_toolkit.server import ToolkitServer
from training.lora.safetensor import MAX_HEADER_BYTES, Malformed, read_header
from training.ports import Example
from training.spec import TrainSpec

PREFIX = "imprint_"
NAME = re.compile(r"imprint_[a-z0-9_]{1,100}")
GPU = "0"  # the queue for Imprint's jobs

Status = Literal["queued", "running", "completed", "failed", "stopped"]
# The server's statuses and Imprint's. The server declares 'stopping' but never sets it.
_STATUS: dict[str, Status] = {
    QUEUED: "queued",
    RUNNING: "running",
    "stopping": "running",
    COMPLETED: "completed",
    ERROR: "failed",
    STOPPED: "stopped",
}
_SPEED = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(iter/sec|sec/iter|it/s|s/it)")
_CHANGES = 5  # give up for now if a job changes its status this often
_SETTLE_S = 0.2
_LEAST_RATE = 1e-5  # a step takes from 10 µs to a day
_LOSSES = 100  # the loss is averaged over at most this many steps


@dataclass(frozen=True)
class RemoteTraining:
    """A training to submit to a server."""

    name: str  # from `remote_name`
    spec: TrainSpec
    examples: Sequence[Example]
    base_model: str  # a hub id, from `config.find_base_model`; the server cannot read folders
    # z-image-turbo: the de-distilling adapter on the hub, as owner/name/file. None: ai-toolkit's default.
    training_adapter: str | None = None


@dataclass(frozen=True)
class PollResult:
    """The state of a job, as seen by one poll."""

    status: Status
    step: int
    total: int | None
    loss: float | None  # mean over the steps since the last poll, 100 at most; None if the server sent none
    seconds_per_step: float | None
    seconds_left: float | None
    info: str  # the server's message, for operators; may quote the job, never a secret of Imprint
    log_offset: int  # pass it to the next poll
    grew: bool  # whether the log grew since the given offset
    samples: tuple[SampleImage, ...]  # all so far, by step; () if the step did not change


def remote_name(job_id: str, attempt: int) -> str:
    """The name on the server of a job's attempt and its dataset: unique, with Imprint's prefix.

    Job ids are random, so nobody can guess the paths that the server serves without a password.
    """
    name = f"{PREFIX}{job_id}_{attempt}"
    if not NAME.fullmatch(name):
        raise BackendFailed(f"{job_id[:60]!r} is not a job id")
    return name


def _nothing() -> None:
    return


def submit(server: ToolkitServer, training: RemoteTraining, check: Callable[[], None] = _nothing) -> str:
    """Submit a training and start it; returns the server's id.

    check: called before the job is created and before it is started; its errors end the submission. It must raise if
    another worker may have started the job meanwhile: starting it again would run it twice.

    Continues an earlier submission of the same name: dataset, pictures, job, queue. A job that was already started is
    left alone, whatever its status. Raises SpecInvalid if ai-toolkit cannot train the recipe.
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
        # Also for a job that was already queued: the worker that queued it may have died before this call, and the
        # server stops a queue when it is empty.
        server.start_queue(job.gpu_ids)
    return job.id


def _create(server: ToolkitServer, training: RemoteTraining, check: Callable[[], None]) -> RemoteJob:
    """Upload the dataset, then create the job."""
    folders = server.folders()
    server.datasets()  # a new server creates its datasets folder in this call, and cannot create a dataset without it
    dataset = server.create_dataset(training.name)
    if dataset != training.name:
        raise BackendFailed(f"the server created a dataset with another name than {training.name}")
    upload_dataset(server, dataset, training.examples, masked=training.spec.objective.masked)
    job_config = config.job_config(
        training.spec,
        training.name,
        folders,
        pictures=len(training.examples),
        base_model=training.base_model,
        training_adapter=training.training_adapter,
        card_gib=_card_gib(server),
    )
    check()
    try:
        made = server.create_job(training.name, job_config, GPU)
    except BackendUnreachable:
        made = server.jobs().get(training.name)  # it may exist: perhaps only the response was lost
        if made is None:
            raise
    found = made or server.jobs().get(training.name)
    if found is None:
        raise BackendUnreachable(f"the server has a job {training.name} but does not list it")
    return found


def _card_gib(server: ToolkitServer) -> float | None:
    """The memory of the card that Imprint's jobs run on; None if the server does not say."""
    try:
        return next((gpu.memory_bytes / 2**30 for gpu in server.gpus() if str(gpu.index) == GPU), None)
    except BackendFailed:
        return None


def _is_fresh(job: RemoteJob) -> bool:
    """Whether a job was created but never started. A stopped one has `stop` set, or an `info` text."""
    return job.status == STOPPED and not job.stop and job.step == 0 and not job.info


def _start(server: ToolkitServer, job: RemoteJob) -> RemoteJob:
    """Queue a fresh job; returns its new state."""
    try:
        server.start(job.id)
    except BackendUnreachable:
        found = server.job(job.id)  # perhaps only the response was lost
        if found is None or _is_fresh(found):
            raise
        return found
    found = server.job(job.id)
    if found is None:
        raise BackendFailed(f"the job {job.name} disappeared from the server while it was started")
    return found


# ---- polling ---------------------------------------------------------------------------------------------------------


def poll(server: ToolkitServer, job: RemoteJob, log_offset: int = 0, step: int = 0) -> PollResult:
    """The state of `job`, which comes from `server.jobs()`.

    step: the step of the last poll. Sends at most two requests, and none for a queued job: for loss and samples if the
    step has changed, else for the log.
    """
    status = _STATUS.get(job.status)
    if status is None:
        raise BackendFailed(f"the job {job.name} has an unknown status on the server")
    total = job.total
    done = job.step if total is None else min(job.step, total)
    loss: float | None = None
    samples: tuple[SampleImage, ...] = ()
    offset = log_offset
    if status == "completed" or (status == "running" and done != step):
        # The trainer numbers its steps from 0, so number `step` comes after `step` steps. The server sends the points
        # after a number, the oldest first: ask only for the newest.
        points = server.loss(job.id, max(step if step < done else 0, done - _LOSSES) - 1)
        loss = fmean(point.value for point in points) if points else None
        samples = tuple(server.samples(job.id))
    elif status == "running":
        offset = server.log(job.id, log_offset).offset
    pace = _seconds_per_step(job.speed) if status == "running" else None
    left = None if pace is None or total is None else (total - done) * pace
    return PollResult(status, done, total, loss, pace, left, job.info, offset, offset != log_offset, samples)


def _seconds_per_step(speed: str) -> float | None:
    match = _SPEED.search(speed)
    rate = None if match is None else wire.real(match[1], least=_LEAST_RATE, most=1 / _LEAST_RATE)
    if match is None or rate is None:
        return None
    return 1 / rate if match[2] in ("iter/sec", "it/s") else rate


# ---- collecting ------------------------------------------------------------------------------------------------------


def collect(server: ToolkitServer, name: str, remote_id: str, folder: Path, spec: TrainSpec) -> Path:
    """Download the LoRA file of a completed job into `folder`, and verify its size and hash.

    Resumes an interrupted download. Raises BackendFailed if the file does not exist or is damaged.
    """
    _check_name(name)
    found = server.job(remote_id)
    if found is None or found.name != name or found.status != COMPLETED:
        raise BackendFailed(f"the job {name} is not completed on the server: it has no file to download")
    # The names of checkpoints contain a step, the name of the finished file does not.
    files = [file for file in server.files(remote_id) if re.split(r"[/\\]", file.path)[-1] == f"{name}.safetensors"]
    if not files or files[0].size == 0:
        raise BackendFailed(f"the job {name} is completed on the server, but has no {spec.family} LoRA file")
    file, path = files[0], folder / f"{name}.safetensors"
    for last in (False, True):
        server.download(file.path, path, file.size)
        if _is_whole(path):
            return path
        path.unlink()  # perhaps parts of two files: download it again from the start
        if last:
            break
    raise BackendFailed(f"the LoRA file of {name} does not match its hash after two downloads")


def _is_whole(path: Path) -> bool:
    """Whether the hash in the metadata of a file matches its data."""
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
    """Stop a job, if it is queued or running. Its files stay until `clear`."""
    _check_name(name)
    for _ in range(_CHANGES):
        job = server.jobs().get(name)
        if job is None or _STATUS.get(job.status) not in ("queued", "running"):
            return
        if job.status == QUEUED or not _stopped(server, job):
            # `stop` has no effect on a queued job, nor on a running one whose process is gone, so set the status. A
            # trainer that starts right now sees it and ends at its first step.
            server.mark_stopped(job.id)
        time.sleep(_SETTLE_S)
    raise BackendUnreachable(f"the job {name} does not stay stopped on the server")


def _stopped(server: ToolkitServer, job: RemoteJob) -> bool:
    """Ask a running job to stop; returns whether it has."""
    server.stop(job.id)
    found = server.job(job.id)
    return found is None or found.status not in (RUNNING, QUEUED)


def clear(server: ToolkitServer, name: str) -> None:
    """Delete a job with its output and dataset, if they exist. Stops the job first.

    Raises BackendFailed for a name that is not Imprint's.
    """
    _check_name(name)  # the server deletes the folder of that name, whatever it is; "" would delete all outputs
    cancel(server, name)
    job = server.jobs().get(name)
    if job is not None:
        server.delete_job(job.id)
    if name in server.datasets():
        server.delete_dataset(name)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise BackendFailed(f"{name[:60]!r} is not a name of an Imprint job")
