"""The steps that simulated workers and schedulers do: in this process, or in one that may be killed at any moment."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol, TypeVar

import sqlalchemy as sa
from sqlmodel import col

from core.errors import LeaseLost
from core.settings import Settings
from jobs.lifecycle import sweeps, transitions
from jobs.lifecycle.leases import Lease, claim_stage
from jobs.services import Services
from storage.database import AWAY
from storage.tables.jobs import JobPicture, PictureState, Stage

LEASE_S = 3600.0  # far longer than a run: the simulation ends leases itself
_PATIENCE_S = 60.0
# Children come from a server that has the modules and no connection: those do not survive a fork.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["benchmarks.fairness.simulation", "tests.servers.postgres"])

Result = TypeVar("Result")


@dataclass(frozen=True)
class Step:
    """`prepare`, `train` and `complete` are a worker's, `decide` is a scheduler's; `complete` has the lease to end."""

    name: str
    job_id: str = ""
    lease: Lease | None = None


def patiently(work: Callable[[], Result]) -> Result:
    """Repeat `work` until the database answers, as Celery repeats a task."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return work()
        except AWAY:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def perform(services: Services, holder: str, step: Step) -> Lease | None:
    """Do a step, which may have been done before. `train` returns the lease of the training that has begun."""
    if step.name == "decide":
        patiently(lambda: sweeps.admit_jobs(services))
    elif step.name == "prepare":
        patiently(lambda: _prepare(services, step.job_id, holder))
    elif step.name == "train":
        lease = patiently(lambda: _claim(services, step.job_id, Stage.TRAIN, holder))
        if lease is not None:
            return lease
        _deliver(services, step.job_id, holder)  # a worker may have died after its training
    elif step.lease is not None:
        ended = step.lease
        with suppress(LeaseLost):  # it was recorded, and the answer of the database was lost
            patiently(lambda: _end_training(services, ended))
        _deliver(services, step.job_id, holder)
    return None


def _prepare(services: Services, job_id: str, holder: str) -> None:
    """The pictures are good. Preparation takes no time here."""
    with services.database.writing() as session:
        good = sa.update(JobPicture).where(col(JobPicture.job_id) == job_id).values(state=PictureState.GOOD)
        session.connection().execute(good)
        if (claimed := claim_stage(session, job_id, Stage.DATASET, holder, LEASE_S)) is not None:
            transitions.begin(session, job_id)
            transitions.advance(session, claimed[0], services.settings)


def _claim(services: Services, job_id: str, stage: Stage, holder: str) -> Lease | None:
    with services.database.writing() as session:
        claimed = claim_stage(session, job_id, stage, holder, LEASE_S)
    return None if claimed is None else claimed[0]


def _end_training(services: Services, lease: Lease) -> None:
    with services.database.writing() as session:
        done = {"train_seconds": 100.0, "lora_sha256": "ab" * 32, "step": 400}
        transitions.advance(session, lease, services.settings, **done)


def _deliver(services: Services, job_id: str, holder: str) -> None:
    """The stages after the training, if the job is at them."""
    upload = patiently(lambda: _claim(services, job_id, Stage.UPLOAD, holder))
    if upload is not None:
        with suppress(LeaseLost):
            patiently(lambda: _end_upload(services, upload))
    patiently(lambda: _settle(services, job_id))


def _end_upload(services: Services, lease: Lease) -> None:
    with services.database.writing() as session:
        transitions.advance(session, lease, services.settings, lora_key=f"models/{lease.job_id}")


def _settle(services: Services, job_id: str) -> None:
    with services.database.writing() as session:
        transitions.settle(session, job_id, services.settings)


# ---- where the steps are done ---------------------------------------------------------------------------------------


class Steps(Protocol):
    """Does steps in their order."""

    def send(self, steps: Sequence[Step]) -> None: ...

    def results(self) -> list[Lease | None]:
        """The results of the steps that were sent; fewer if the process was killed."""

    def kill(self) -> None:
        """Begin again without what was known."""

    def close(self) -> None: ...


class InProcess:
    """Does the steps at once. A kill comes between two steps."""

    def __init__(self, services: Services, name: str) -> None:
        self._services, self._name = services, name
        self._found: list[Lease | None] = []

    def send(self, steps: Sequence[Step]) -> None:
        self._found = [perform(self._services, self._name, step) for step in steps]

    def results(self) -> list[Lease | None]:
        return self._found

    def kill(self) -> None:
        self._found = []

    def close(self) -> None:
        """Nothing to end."""


class InOwnProcess:
    """Does the steps in a process. A kill is SIGKILL, at any moment; another process takes its place."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings, self._name = settings, name
        self._sent = 0
        self._process, self._connection = self._start()

    def _start(self) -> tuple[BaseProcess, Connection]:
        ours, theirs = _FORKS.Pipe()
        process = _FORKS.Process(target=_serve, args=(self._settings, self._name, theirs), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def send(self, steps: Sequence[Step]) -> None:
        self._sent = len(steps)
        self._connection.send(list(steps))

    def results(self) -> list[Lease | None]:
        found: list[Lease | None] = []
        with suppress(EOFError, ConnectionError):
            while len(found) < self._sent:
                found.append(self._connection.recv())
        if not self._process.is_alive():
            self._connection.close()
            self._process, self._connection = self._start()
        elif len(found) < self._sent:
            raise RuntimeError(f"{self._name} did not do its steps")
        self._sent = 0
        return found

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        self.kill()
        self._connection.close()


def _serve(settings: Settings, name: str, connection: Connection) -> None:
    services = Services(settings)
    with suppress(EOFError, ConnectionError):  # the simulation has ended
        while True:
            for step in connection.recv():
                connection.send(perform(services, name, step))
