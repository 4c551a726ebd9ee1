"""The shell around every step: claim, keep the lease, and turn what goes wrong into the right move of the job."""

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from core import metrics
from core.errors import HandOver, ImprintError, LeaseLost, OutOfMemory, Stop
from core.logging import stage_context
from jobs import keys, transitions
from jobs.leases import HeldLease, Lease, claim_stage
from jobs.services import Services
from storage.database import AWAY
from storage.tables import ACTIVE, Job, Stage, Status

log = logging.getLogger(__name__)


class NotMine(Exception):
    """Somebody else works on the stage, or it is done, or the job is final."""


class DoneBefore(NotMine):
    """The stage is done, and the job waits or is worked on behind it: what follows may be sent once more."""


class TryAgain(Exception):
    """A transient failure: call the step again in `delay_s` seconds."""

    def __init__(self, reason: str, delay_s: float) -> None:
        super().__init__(reason, delay_s)
        self.delay_s = delay_s


# ---- the shell of a step ----------------------------------------------------------------------------------


def holder() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"


@contextmanager
def working(services: Services, lease: Lease) -> Iterator[HeldLease]:
    """Keep the lease while the block works; turn what goes wrong into the right move of the job."""
    with stage_context(lease.job_id, lease.stage), timed(lease.stage):
        try:
            with services.lease_keeper.keeping(lease) as held:
                yield held
        except HandOver as stop:
            with suppress(LeaseLost), services.database.writing() as session:
                transitions.hand_over(session, lease, services.settings)
            raise NotMine(str(stop)) from stop
        except Stop as stop:
            log.info("left: %s", stop)
            clean_up(services, lease.job_id)  # a job that is final meanwhile keeps nothing of what was written
            raise NotMine(str(stop)) from stop
        except ImprintError as error:
            _failed(services, lease, error)
        except MemoryError as error:
            _failed(services, lease, OutOfMemory("this worker ran out of memory"), error)
        except AWAY:
            # The database went away: the lease ends by itself, and the sweep sends the stage again.
            raise
        except Exception as error:
            log.exception("unexpected")
            _failed(
                services,
                lease,
                ImprintError(f"an unexpected error in {lease.stage}: {type(error).__name__}"),
                error,
            )


@contextmanager
def timed(stage: Stage) -> Iterator[None]:
    """Count how long a stage took, and how it ended."""
    begun, outcome = time.perf_counter(), "failed"
    try:
        yield
        outcome = "done"
    except TryAgain:
        outcome = "retried"
        raise
    except NotMine:
        outcome = "left"  # handed over, cancelled, or somebody else has it
        raise
    finally:
        metrics.STAGE_SECONDS.add(time.perf_counter() - begun, stage, outcome)


def _failed(services: Services, lease: Lease, error: ImprintError, cause: BaseException | None = None) -> NoReturn:
    """Another attempt if one can help and is left; else the job fails."""
    if error.retryable and lease.attempt < services.settings.max_attempts:
        with services.database.writing() as session:
            try:
                delay_s = transitions.postpone(session, lease, error, services.settings)
            except Stop as stop:
                raise NotMine(str(stop)) from stop
        log.warning("attempt %d failed, next in %.1f s: %s", lease.attempt, delay_s, error)
        raise TryAgain(error.message, delay_s) from (cause or error)
    with services.database.writing() as session:
        failed = transitions.fail_leased(session, lease, error)
    if not failed:
        raise NotMine("the job went on without this step") from error
    log.error("failed: %s: %s", error.code, error)
    raise error from cause


def claim(services: Services, job_id: str, stage: Stage) -> tuple[Lease, Job]:
    with services.database.writing() as session:
        claimed = claim_stage(session, job_id, stage, holder(), services.settings.lease_s)
        if claimed is None:
            raise _refusal(session.get(Job, job_id), stage)
        transitions.begin(session, job_id)  # where every picture was prepared before, this is the first sign of work
        if stage is Stage.DATASET and claimed[0].attempt == 1:
            transitions.record_event(session, job_id, "stage", stage=stage)  # `advance` records the other stages
        return claimed


def _refusal(job: Job | None, stage: Stage) -> NotMine:
    """Why there is no claim on `stage`."""
    order = list(Stage)
    if job is not None and job.status in ACTIVE and order.index(Stage(job.stage)) > order.index(stage):
        return DoneBefore(f"{stage} of {job.id} is done")
    return NotMine(f"there is no {stage} to do here")


@contextmanager
def work_dir(services: Services, job_id: str) -> Iterator[Path]:
    services.work_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{job_id}-", dir=services.work_dir))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- clean up ----------------------------------------------------------------------------------------------


def clean_up(services: Services, job_id: str) -> None:
    """Take away what a final job no longer needs; of a job that is not ready, the model file too."""
    with services.database.reading() as session:
        job = session.get(Job, job_id)
    if job is None or job.status in ACTIVE:
        return
    services.store.delete_prefix(keys.checkpoints(job_id))
    services.store.delete_prefix(keys.outputs(job_id))
    if job.status != Status.READY:
        services.store.delete(keys.lora(job_id))
        services.store.delete_prefix(keys.previews(job_id))
    # What a killed worker had unpacked, where the next one came before the killed one's last process was gone.
    for folder in services.work_dir.parent.glob(f"*/{job_id}-*"):
        if not _alive(int(folder.parent.name)):
            shutil.rmtree(folder, ignore_errors=True)


def clear_dead_work_dirs(services: Services) -> None:
    """Remove the work folders of processes that are gone. Called when a worker starts."""
    parent = services.work_dir.parent
    for folder in parent.iterdir() if parent.is_dir() else ():
        if folder.name.isdigit() and not _alive(int(folder.name)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
