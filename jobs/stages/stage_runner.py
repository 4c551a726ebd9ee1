"""What all steps share: find what is left to do, claim the stage, keep the lease, turn an error into a transition."""

import logging
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sqlmodel import col, select

from core.errors import HandOver, ImageUnreachable, ImprintError, LeaseLost, OutOfMemory, Stop, StoreUnavailable
from core.telemetry import metrics
from core.telemetry.logging import stage_context
from jobs import keys, shared_objects
from jobs.deletion import rows
from jobs.lifecycle import retries, transitions
from jobs.lifecycle.lease_keeper import HeldLease
from jobs.lifecycle.leases import Lease, claim_stage
from jobs.services import Services
from jobs.specs import spec_of
from jobs.turns import RetryLater
from storage.database import AWAY
from storage.tables.jobs import ACTIVE, Job, JobPicture, PictureState, Stage, Status
from storage.tables.pictures import StoredPicture

log = logging.getLogger(__name__)

_STORED_TOGETHER = 5  # stored pictures in one message
_FETCHING = 12  # the most messages of a job that have addresses: more than an owner's downloads that run at once
_BYTES_TOGETHER = 2 * 2**20


class NothingToDo(Exception):
    """Another worker has the stage, the stage is done, or the job is final."""


class AlreadyDone(NothingToDo):
    """The stage is done and the job is at a later one: the messages that follow may be sent again."""


# ---- what is left to do ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RemainingWork:
    """What is left to do for a job: from which stage on, and which pictures."""

    stage: Stage
    groups: Sequence[Sequence[int]]  # the waiting pictures, by the messages that they are prepared with
    family: str
    backend: str
    captions: bool = False  # whether the stage `caption` is to come
    caption_here: bool = False  # whether that needs a training worker


def remaining_work(services: Services, job_id: str) -> RemainingWork | None:
    """What is left to do for a job; None if it is final, waits for its owner's review, or does not exist."""
    with services.database.reading() as session:
        job = session.get(Job, job_id)
        if job is None or job.status not in ACTIVE or job.stage == Stage.REVIEW:
            return None
        waiting = session.execute(
            select(JobPicture.position, JobPicture.reference, JobPicture.mask, StoredPicture.size_bytes)
            .outerjoin(StoredPicture, col(StoredPicture.id) == JobPicture.reference)
            .where(JobPicture.job_id == job_id, JobPicture.state == PictureState.WAITING)
            .order_by(col(JobPicture.position))
        )
        groups = picture_groups([(row[0], "://" in row[1] or "://" in (row[2] or ""), row[3] or 0) for row in waiting])
        spec = spec_of(job)
        here = spec.captions == "auto" and services.settings.caption_task is None
        return RemainingWork(Stage(job.stage), groups, spec.family, spec.backend, job.needs_captions, here)


def picture_groups(pictures: Iterable[tuple[int, bool, int]]) -> list[list[int]]:
    """The positions of pictures by message, for (position, whether it is fetched from an address, size in bytes).

    A message costs as much CPU time as a small picture. But pictures of one message are prepared one after the other,
    so a message has few bytes, and of addresses, whose hosts may be slow, it has two, or a twelfth of the job's if
    those are more.
    """
    given = list(pictures)
    fetched_together = max(2, math.ceil(sum(is_fetched for _, is_fetched, _ in given) / _FETCHING))
    groups: list[list[int]] = []
    open_groups: dict[bool, tuple[list[int], int]] = {}
    for position, is_fetched, size in given:
        group, held = open_groups.get(is_fetched, ([], 0))
        most = fetched_together if is_fetched else _STORED_TOGETHER
        if not group or len(group) >= most or held + size > _BYTES_TOGETHER:
            group, held = [], 0
            groups.append(group)
        group.append(position)
        open_groups[is_fetched] = group, held + size
    return groups


# ---- running a step ----------------------------------------------------------------------------------------


def worker_name() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"


@contextmanager
def holding_lease(services: Services, lease: Lease, limit_s: float | None = None) -> Iterator[HeldLease]:
    """Keep the lease while the block runs; turn an error into the right transition of the job.

    limit_s: how long at most; None: `stage_timeout_s`.
    """

    def hand_over(reason: str) -> None:
        with suppress(LeaseLost), services.database.writing() as session:
            retries.hand_over(session, lease, services.settings, reason)

    held = None
    with stage_context(lease.job_id, lease.stage), timed_stage(lease.stage):
        try:
            limit_s = limit_s or services.settings.stage_timeout_s
            with services.lease_keeper.keeping(lease, limit_s, hand_over) as held:
                yield held
        except HandOver as stop:
            if held is not None and not held.lost.is_set():
                hand_over(str(stop) or "this worker was asked to stop")
            raise NothingToDo(str(stop)) from stop
        except Stop as stop:
            log.info("this worker stops work on the stage: %s", stop)
            # If the job is final or deleted by now, nothing that was written is kept.
            clean_up(services, lease.job_id, lease.model_id)
            raise NothingToDo(str(stop)) from stop
        except ImprintError as error:
            _retry_or_fail(services, lease, error)
        except MemoryError as error:
            _retry_or_fail(services, lease, OutOfMemory("this worker ran out of memory"), error)
        except AWAY:
            # The database does not answer: the lease expires, and the sweep sends the stage again.
            raise
        except Exception as error:
            log.exception("the stage %s of job %s ended with an unexpected error", lease.stage, lease.job_id)
            _retry_or_fail(
                services,
                lease,
                ImprintError(f"an unexpected error in {lease.stage}: {type(error).__name__}"),
                error,
            )


@contextmanager
def timed_stage(stage: Stage) -> Iterator[None]:
    """Record how long a stage took and how it ended."""
    begun, outcome = time.perf_counter(), "failed"
    try:
        yield
        outcome = "done"
    except RetryLater:
        outcome = "retried"
        raise
    except NothingToDo:
        outcome = "left"  # handed over, cancelled, or claimed by another worker
        raise
    finally:
        metrics.STAGE_SECONDS.add(time.perf_counter() - begun, stage, outcome)


def _retry_or_fail(
    services: Services, lease: Lease, error: ImprintError, cause: BaseException | None = None
) -> NoReturn:
    """Raise RetryLater if another attempt may help and one is left; else fail the job and raise its error."""
    delay_s = _postpone(services, lease, error)
    if delay_s is not None:
        log.warning("attempt %d failed; the next one is in %.1f s: %s", lease.attempt, delay_s, error)
        raise RetryLater(error.message, delay_s) from (cause or error)
    with services.database.writing() as session:
        failed = transitions.fail_leased(session, lease, error)
    if not failed:
        raise NothingToDo("the job continued without this step") from error
    log.error("the job failed with %s: %s", error.code, error)
    raise error from cause


def _postpone(services: Services, lease: Lease, error: ImprintError) -> float | None:
    """Release the lease for another attempt; returns its delay in seconds, or None if none would help or is left."""
    # A server's outage is waited out; other errors have a number of attempts.
    is_outage = lease.position is not None and isinstance(error, ImageUnreachable | StoreUnavailable)
    if not error.retryable or not (is_outage or lease.attempt < services.settings.max_attempts):
        return None
    postpone = retries.postpone_picture if is_outage else retries.postpone
    with services.database.writing() as session:
        try:
            return postpone(session, lease, error, services.settings)
        except Stop as stop:
            raise NothingToDo(str(stop)) from stop


def claim(services: Services, job_id: str, stage: Stage) -> tuple[Lease, Job]:
    """Claim a stage under a lease; a job's first claim begins it. Raises AlreadyDone or NothingToDo."""
    with services.database.writing() as session:
        claimed = claim_stage(session, job_id, stage, worker_name(), services.settings.lease_s)
        if claimed is None:
            raise _why_not_claimed(session.get(Job, job_id), stage)
        if claimed[1].status == Status.PENDING:  # all pictures were prepared before: this is the first stage with work
            transitions.begin(session, job_id)
        transitions.record_stage(session, job_id, stage)
        return claimed


def _why_not_claimed(job: Job | None, stage: Stage) -> NothingToDo:
    """The error for a stage that cannot be claimed."""
    order = list(Stage)
    if job is not None and job.status in ACTIVE and order.index(Stage(job.stage)) > order.index(stage):
        return AlreadyDone(f"{stage} of {job.id} is done")
    return NothingToDo(f"there is no {stage} to do for this job")


@contextmanager
def work_dir(services: Services, job_id: str) -> Iterator[Path]:
    services.work_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{job_id}-", dir=services.work_dir))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- clean up ----------------------------------------------------------------------------------------------


def clean_up(services: Services, job_id: str, model_id: str = "") -> None:
    """Delete what a final job no longer needs; unless it is ready, also its LoRA files and previews.

    A cancelled job has paid for its steps, so it keeps the LoRA files of its checkpoints. Of a deleted job nothing is
    kept; `model_id` is the id that it had.
    """
    with services.database.reading() as session:
        job = session.get(Job, job_id)
    if job is None:
        delete_files(services, job_id, model_id or job_id)
        return
    if job.status in ACTIVE:
        return
    services.store.delete_prefix(keys.checkpoints(job_id))
    services.store.delete_prefix(keys.outputs(job_id))
    if job.status != Status.READY:
        services.store.delete(keys.lora(job.public_model_id))
        services.store.delete_prefix(keys.previews(job_id))
    if job.status == Status.FAILED:
        services.store.delete_prefix(keys.kept_loras(job.public_model_id))
    _clear_dead_work_dirs_of(services, job_id)
    with services.database.writing() as session:
        if job.started_at is None:
            rows.forget_fetched(session, job_id)
        if job.dataset_sha256:
            shared_objects.note_unused(session, [keys.manifest(job.dataset_sha256)])


def delete_files(services: Services, job_id: str, model_id: str) -> None:
    """Delete all files of a final or deleted job, except the pictures that it may share with others."""
    for prefix in (keys.checkpoints(job_id), keys.outputs(job_id), keys.previews(job_id)):
        services.store.delete_prefix(prefix)
    with services.database.reading() as session:
        others = select(Job.id).where(Job.model_id == model_id, Job.id != job_id)
        is_another = session.exec(others).first() is not None  # the id was free again
    if not is_another:
        services.store.delete(keys.lora(model_id))
        services.store.delete_prefix(keys.kept_loras(model_id))
    if services.settings.comfyui_loras is not None:
        for path in services.settings.comfyui_loras.glob(f"{job_id}*.safetensors"):  # also of a delivered checkpoint
            path.unlink(missing_ok=True)
    _clear_dead_work_dirs_of(services, job_id)


def _clear_dead_work_dirs_of(services: Services, job_id: str) -> None:
    """Delete what a killed worker had unpacked, if the next worker came before the last process of the first ended."""
    for folder in services.work_dir.parent.glob(f"*/{job_id}-*"):
        if not _is_alive(int(folder.parent.name)):
            shutil.rmtree(folder, ignore_errors=True)


def clear_dead_work_dirs(services: Services) -> None:
    """Delete the work folders of processes that have ended. Called when a worker starts."""
    parent = services.work_dir.parent
    for folder in parent.iterdir() if parent.is_dir() else ():
        if folder.name.isdigit() and not _is_alive(int(folder.name)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
