"""Simulated workers of bench-scale: they claim, renew and end jobs as training workers do, and only wait meanwhile."""

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from queue import Empty
from typing import Any

import sqlalchemy as sa
from sqlmodel import col

from core.clock import utcnow
from core.settings import Settings
from jobs.lifecycle import transitions
from jobs.lifecycle.leases import Lease, claim_stage
from jobs.services import Services
from notifications import outbox
from storage.tables.jobs import Job, JobPicture, PictureState, Stage, Status

OWNERS, WORKERS = 500, 200
_FORK = multiprocessing.get_context("fork")
_PROCESSES = 2  # of the simulated workers


def take_launches(services: Services, limit: int) -> list[str]:
    """The relay: the jobs whose launch would go to the broker now."""
    with services.database.writing() as session:
        launches = outbox.claim(session, utcnow(), ("launch",), limit, lease=timedelta(seconds=60))
        for message in launches:
            outbox.mark_sent(session, message.id)
    return [message.job_id for message in launches if message.job_id]


@dataclass
class _Fleet:
    """Workers in processes of their own, and what they have done."""

    services: Services
    launched: Any = field(default_factory=_FORK.Queue)
    transitions: Any = field(default_factory=lambda: _FORK.Value("q", 0))
    stop: Any = field(default_factory=_FORK.Event)

    def admitted(self) -> int:
        with self.services.database.reading() as session:
            return int(
                session.execute(sa.select(sa.func.count()).where(col(Job.admitted_at).is_not(None))).scalar_one()
            )


@contextmanager
def running_fleet(services: Services, train_s: float) -> Iterator[_Fleet]:
    fleet = _Fleet(services)
    services.database.close()
    each = WORKERS // _PROCESSES
    processes = [_FORK.Process(target=_work, args=(services.settings, fleet, each, train_s)) for _ in range(_PROCESSES)]
    for process in processes:
        process.start()
    done = threading.Event()
    relay = threading.Thread(target=_relay, args=(services, fleet, done))
    relay.start()
    try:
        yield fleet
    finally:
        fleet.stop.set()
        done.set()
        relay.join()
        for process in processes:
            process.terminate()
            process.join()
        fleet.launched.cancel_join_thread()
        _cancel_the_rest(services)


def _relay(services: Services, fleet: _Fleet, done: threading.Event) -> None:
    while not done.wait(0.1):
        for job_id in take_launches(services, 200):
            fleet.launched.put(job_id)


def _work(settings: Settings, fleet: _Fleet, slots: int, train_s: float) -> None:
    """As many slots: one thread for what begins and what ends, as a worker's process has it, and its heartbeats."""
    services = Services(settings)
    training: list[tuple[float, str, Lease]] = []
    renewed = time.monotonic()
    while not fleet.stop.is_set():
        now = time.monotonic()
        while training and training[0][0] <= now:
            _, job_id, lease = training.pop(0)
            _finish(services, fleet, job_id, lease)
        if now - renewed > settings.lease_s / 3:
            renewed = now
            for _, _, lease in training:
                with services.database.writing() as session:
                    lease.renew(session, settings.lease_s)
        if len(training) < slots:
            try:
                job_id = fleet.launched.get(timeout=0.05)
            except Empty:
                continue
            if (claimed := _start(services, fleet, job_id)) is not None:
                training.append((time.monotonic() + train_s, job_id, claimed))
        else:
            time.sleep(0.01)


def _start(services: Services, fleet: _Fleet, job_id: str) -> Lease | None:
    with services.database.writing() as session:
        done = sa.update(JobPicture).where(col(JobPicture.job_id) == job_id).values(state=PictureState.GOOD)
        session.execute(done)
        if (claimed := claim_stage(session, job_id, Stage.DATASET, "simulated", 60)) is not None:
            transitions.begin(session, job_id)
            transitions.advance(session, claimed[0], services.settings)
    with services.database.writing() as session:
        claimed = claim_stage(session, job_id, Stage.TRAIN, "simulated", services.settings.lease_s)
    fleet.transitions.value += 2
    return None if claimed is None else claimed[0]


def _finish(services: Services, fleet: _Fleet, job_id: str, lease: Lease) -> None:
    settings = services.settings
    with services.database.writing() as session:
        transitions.advance(session, lease, settings, train_seconds=10.0, lora_sha256="ab" * 32, step=400)
    with services.database.writing() as session:
        if (upload := claim_stage(session, job_id, Stage.UPLOAD, "simulated", 60)) is not None:
            transitions.advance(session, upload[0], settings, lora_key=f"models/{job_id}")
    with services.database.writing() as session:
        transitions.settle(session, job_id, settings)
    fleet.transitions.value += 3


def _cancel_the_rest(services: Services) -> None:
    """End what the workers leave behind: the next sweeps would repair it, and that is not what they measure."""
    with services.database.writing() as session:
        rest = sa.update(Job).where(col(Job.admitted_at).is_not(None), col(Job.finished_at).is_(None))
        session.execute(rest.values(status=Status.CANCELLED, finished_at=utcnow(), lease_until=None))
