"""The link between a running training and the database: it writes progress, and finds out when to stop."""

import hashlib
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from core.clock import utcnow
from core.errors import Cancelled, HandOver, LeaseLost, NotFound, TrainingTimeout
from jobs import keys
from jobs.lifecycle import launches
from jobs.lifecycle.lease_keeper import HeldLease
from jobs.lifecycle.leases import Lease
from storage.database import AWAY, Database
from storage.objects import ObjectStore
from storage.tables.jobs import Job, JobEvent, Status
from training.lora import metadata as lora_metadata
from training.ports import Progress

log = logging.getLogger(__name__)

# Set when this worker is asked to stop: its trainings write a checkpoint and hand over.
leaving = threading.Event()


class Device:
    """The device that this process trains on; its name is set by the check of a training worker."""

    name = ""


device = Device()

_CHECK_EVERY_S = 0.5


class JobControl:
    """Implements `training.ports.Control` for one leased training."""

    def __init__(self, database: Database, lease: Lease, held: HeldLease, timeout_s: float) -> None:
        self._database, self._lease, self._held = database, lease, held
        self._deadline = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._next_check = 0.0

    def check(self) -> None:
        """Raise the error that ends the training, if there is one. Queries the job at most twice a second."""
        if leaving.is_set():
            raise HandOver("this worker was asked to stop")
        now = time.monotonic()
        if now > self._deadline:
            raise TrainingTimeout(f"the training took longer than {self._timeout_s:.0f} s")
        if self._held.lost.is_set():
            self._raise_why()
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_EVERY_S
        try:
            with self._database.reading() as session:
                held = self._lease.is_held(session)
        except AWAY as error:
            log.warning("the training continues while the database does not answer (%s)", error)
            return
        if not held:
            self._raise_why()

    def report(self, progress: Progress) -> None:
        """Write progress to the job and its events. Raises if the lease is lost."""
        data = {
            "step": progress.step,
            "total": progress.total,
            "loss": progress.loss,
            "seconds_left": progress.seconds_left,
        }
        validated: dict[str, float] = {}
        if progress.validation_loss is not None:
            validated = {"validation_loss": progress.validation_loss}
        try:
            with self._database.writing() as session:
                self._lease.write(
                    session,
                    step=progress.step,
                    loss=progress.loss,
                    seconds_left=progress.seconds_left,
                    seconds_per_step=progress.seconds_per_step,
                    **validated,
                )
                event = JobEvent(job_id=self._lease.job_id, at=utcnow(), kind="progress", data=data | validated)
                session.add(event)
        except LeaseLost:
            self._raise_why()
        except AWAY as error:
            log.warning("progress is not written: the database does not answer (%s)", error)

    def note(self, text: str) -> None:
        """Add a note to the job. Raises if the lease is lost."""
        try:
            with self._database.writing() as session:
                job = session.get_one(Job, self._lease.job_id)
                if text not in (job.notes or ()):  # a resumed training notes the same again
                    self._lease.write(session, notes=[*(job.notes or ()), text])
        except LeaseLost:
            self._raise_why()
        except AWAY as error:
            log.warning("a note is not written: the database does not answer (%s)", error)

    def _raise_why(self) -> None:
        with self._database.reading() as session:
            job = session.get(Job, self._lease.job_id)
        if job is not None and job.status == Status.CANCELLED:
            raise Cancelled("the owner cancelled")
        raise LeaseLost(f"{self._lease.job_id}: another worker has claimed the job, or it is final")


class StoredCheckpoints:
    """Implements `training.ports.CheckpointStore` in the object store, so that any worker can continue.

    A new checkpoint resets the stage's attempts: only attempts without progress are counted.
    """

    def __init__(self, store: ObjectStore, database: Database, lease: Lease) -> None:
        self._store, self._database, self._lease = store, database, lease
        self._prefix = keys.checkpoints(lease.job_id)

    def steps(self) -> Sequence[int]:
        names = (key.removeprefix(self._prefix).removesuffix(".safetensors") for key in self._store.list(self._prefix))
        return sorted(int(name) for name in names if name.isdigit())

    def load(self, step: int) -> bytes:
        return self._store.get(self._key(step))

    def save(self, step: int, data: bytes) -> None:
        self._store.put(self._key(step), data)
        try:
            with self._database.writing() as session:
                self._lease.write(session, checkpoint_step=step, attempt=1)
        except AWAY as error:
            log.warning("checkpoint %d is stored but not recorded: the database does not answer (%s)", step, error)

    def drop(self, step: int) -> None:
        with suppress(NotFound):
            self._store.delete(self._key(step))

    def _key(self, step: int) -> str:
        return f"{self._prefix}{step:08d}.safetensors"


class StoredLoras:
    """Implements `training.ports.LoraStore`: files in the object store, each with an event of the job."""

    def __init__(self, store: ObjectStore, database: Database, lease: Lease, model_id: str) -> None:
        self._store, self._database, self._lease, self._model_id = store, database, lease, model_id

    def save(self, step: int, data: bytes) -> None:
        key = keys.kept_lora(self._model_id, step)
        self._store.put(key, data)
        facts: dict[str, Any] = {
            "step": step,
            "key": key,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        }
        if (loss := lora_metadata.validation_loss(data)) is not None:
            facts["validation_loss"] = loss
        try:
            with self._database.writing() as session:
                if self._lease.is_held(session):
                    launches.record_event(session, self._lease.job_id, "checkpoint", **facts)
        except AWAY as error:
            log.warning("a checkpoint is kept but its event is not: the database does not answer (%s)", error)


class StoredPreviews:
    """Implements `training.ports.PreviewStore`: pictures in the object store, each with an event of the job."""

    def __init__(self, store: ObjectStore, database: Database, lease: Lease) -> None:
        self._store, self._database, self._lease = store, database, lease

    def save(self, step: int, prompt: int, png: bytes) -> None:
        # No attempt in the key: a worker that continues from a checkpoint draws the same picture again.
        key = keys.preview(self._lease.job_id, 0, step, prompt, "png")
        self._store.put(key, png)
        try:
            with self._database.writing() as session:
                if self._lease.is_held(session):
                    launches.record_event(session, self._lease.job_id, "preview", step=step, prompt=prompt, key=key)
        except AWAY as error:
            log.warning("a preview is stored but its event is not: the database does not answer (%s)", error)
