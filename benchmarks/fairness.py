"""`make bench-fair`: what owners with few jobs wait for beside one with hundreds, as JSON.

Nine owners with five jobs each, alone and beside one with 500, on simulated workers: jobs are accepted, admitted,
leased, advanced and settled as ever, in the database; only the training itself is a number of ticks. A wait is the time
from the acceptance of a job to the start of its training, in ticks. `busy` is the part of the slots that trained while
jobs waited.

The third case kills: processes that decide beside the workers are killed at random, and so are workers during a
training. Every job must end ready, charged once. The last line is one JSON object; `fair` says whether the p95 of the
nine is within 1.5 times of what it is alone, in both cases, with slots as busy.
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa
from sqlmodel import col, select

from core.clock import utcnow
from core.settings import Settings
from jobs import service
from jobs.admission import workers
from jobs.lifecycle import sweeps, transitions
from jobs.lifecycle.leases import Lease, claim_stage
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import intake
from notifications import outbox
from storage.tables.jobs import Job, JobPicture, PictureState, Stage, Status
from tests.servers.postgres import new_database, postgres_server

QUEUE = "train.sd15"
SMALL = {f"small{number}": 5 for number in range(9)}
_TICKS = 4  # of one training
_FORK = multiprocessing.get_context("fork")


@dataclass
class FairnessResult:
    """Waits in ticks by owner, in the order of the starts; and how busy the slots were while jobs waited."""

    waits: dict[str, list[int]] = field(default_factory=dict)
    trained: int = 0
    offered: int = 0

    def p95(self, owners: Mapping[str, int]) -> float:
        """Of the waits of these owners."""
        waits = sorted(wait for owner in owners for wait in self.waits[owner])
        return waits[min(len(waits) - 1, int(0.95 * len(waits)))]

    @property
    def busy(self) -> float:
        return self.trained / max(self.offered, 1)


class Simulation:
    """Workers with `slots` slots in all, on the database of `services`. Time is counted in ticks."""

    def __init__(self, services: Services, slots: int, die: float = 0.0, seed: int = 7) -> None:
        """die: how likely a worker dies during a training."""
        self._services, self._slots, self._die = services, slots, die
        self._random = random.Random(seed)
        self._queue: deque[str] = deque()  # what the broker holds, oldest first
        self._training: dict[str, tuple[Lease, int]] = {}  # until which tick
        self._owners: dict[str, str] = {}
        self._now = 0
        self.outcome = FairnessResult()
        self.deaths = 0

    def run(self, jobs: Mapping[str, int]) -> FairnessResult:
        """Accept so many jobs of each owner, the first owner's first, and work until all are final."""
        workers.beat(self._services, "simulated", [QUEUE], self._slots)
        for owner_id, count in jobs.items():
            self._submit(owner_id, count)
        while not self._is_over():
            self._now += 1
            self._take_messages()
            self._finish()
            self._start()
            self.outcome.trained += len(self._training)
            self.outcome.offered += self._slots if self._some_wait() else len(self._training)
            if self._now % 10 == 0:
                sweeps.repair_jobs(self._services)
                sweeps.admit_jobs(self._services)
                workers.beat(self._services, "simulated", [QUEUE], self._slots)
        return self.outcome

    def _submit(self, owner_id: str, count: int) -> None:
        accounts.grant(self._services, owner_id, 10**6)
        images = [intake.store_picture(self._services, owner_id, "dog", b"picture %d" % number) for number in range(5)]
        asked = {
            "owner_id": owner_id, "subject_id": "dog", "base_model": "sd15", "trigger_word": "sks", "images": images,
            "max_steps": 400,
        }  # fmt: skip
        for _ in range(count):
            self._owners[service.submit(self._services, asked).job_id] = owner_id
            self._take_messages()  # a relay runs all the time, and a job is prepared within seconds

    def _is_over(self) -> bool:
        with self._services.database.reading() as session:
            return session.exec(select(Job.id).where(col(Job.finished_at).is_(None)).limit(1)).first() is None

    def _some_wait(self) -> bool:
        with self._services.database.reading() as session:
            waiting = select(Job.id).where(col(Job.admitted_at).is_(None), Job.status == Status.PENDING)
            return session.exec(waiting.limit(1)).first() is not None

    def _take_messages(self) -> None:
        """The relay: launches go to the broker. Preparation takes no time here."""
        with self._services.database.writing() as session:
            launches = outbox.claim(session, utcnow(), ("launch",), 1000, lease=timedelta(seconds=60))
            for message in launches:
                outbox.mark_sent(session, message.id)
        for message in launches:
            if message.job_id:
                self._prepare(message.job_id)
                self._queue.append(message.job_id)

    def _prepare(self, job_id: str) -> None:
        with self._services.database.writing() as session:
            done = sa.update(JobPicture).where(col(JobPicture.job_id) == job_id).values(state=PictureState.GOOD)
            session.connection().execute(done)
            if (claimed := claim_stage(session, job_id, Stage.DATASET, "simulated", 60)) is not None:
                transitions.begin(session, job_id)
                transitions.advance(session, claimed[0], self._services.settings)

    def _start(self) -> None:
        while self._queue and len(self._training) < self._slots:
            job_id = self._queue.popleft()
            with self._services.database.writing() as session:
                claimed = claim_stage(session, job_id, Stage.TRAIN, "simulated", 3600)
            if claimed is None:
                continue  # a second message of the same job
            self._training[job_id] = claimed[0], self._now + _TICKS
            if claimed[0].token == 2:  # the first claim of the stage, after that of the dataset
                self.outcome.waits.setdefault(self._owners[job_id], []).append(self._now)

    def _finish(self) -> None:
        for job_id, (lease, until) in list(self._training.items()):
            if self._random.random() < self._die:
                self._lose(job_id)
            elif until <= self._now:
                del self._training[job_id]
                self._complete(job_id, lease)

    def _lose(self, job_id: str) -> None:
        """The worker dies: its lease is over, and the sweep finds the job."""
        del self._training[job_id]
        self.deaths += 1
        with self._services.database.writing() as session:
            past = utcnow() - timedelta(seconds=1)
            # A checkpoint was stored: the attempts begin again.
            session.connection().execute(
                sa.update(Job).where(col(Job.id) == job_id).values(lease_until=past, attempt=1)
            )

    def _complete(self, job_id: str, lease: Lease) -> None:
        settings = self._services.settings
        with self._services.database.writing() as session:
            transitions.advance(session, lease, settings, train_seconds=100.0, lora_sha256="ab" * 32, step=400)
        with self._services.database.writing() as session:
            upload = claim_stage(session, job_id, Stage.UPLOAD, "simulated", 60)
            if upload is not None:
                transitions.advance(session, upload[0], settings, lora_key=f"models/{job_id}")
        with self._services.database.writing() as session:
            transitions.settle(session, job_id, settings)


@contextmanager
def schedulers(settings: Settings, count: int, seed: int = 7) -> Iterator[list[int]]:
    """Processes that decide all the time, and a process that kills one of them ten times a second; yields the kills."""
    stop, kills = _FORK.Event(), _FORK.Value("i", 0)
    killer = _FORK.Process(target=_kill_at_random, args=(settings, count, seed, stop, kills))
    killer.start()
    told: list[int] = []
    try:
        yield told
    finally:
        stop.set()
        killer.join()
        told.append(kills.value)


def _kill_at_random(
    settings: Settings,
    count: int,
    seed: int,
    stop: "multiprocessing.synchronize.Event",
    kills: "multiprocessing.sharedctypes.Synchronized[int]",
) -> None:
    chance = random.Random(seed)
    running = [_decider(settings) for _ in range(count)]
    while not stop.wait(0.1):
        victim = chance.randrange(count)
        running[victim].kill()
        running[victim].join()
        kills.value += 1
        running[victim] = _decider(settings)
    for process in running:
        process.kill()
        process.join()


def _decider(settings: Settings) -> multiprocessing.process.BaseProcess:
    process = _FORK.Process(target=_decide_for_ever, args=(settings,))
    process.start()
    return process


def _decide_for_ever(settings: Settings) -> None:
    services = Services(settings)
    while True:
        sweeps.admit_jobs(services)


def check(services: Services, jobs: int) -> None:
    """Every job is ready, was charged once, and the audit finds nothing. Raises AssertionError."""
    with services.database.reading() as session:
        ends = session.exec(select(Job.status)).all()
    if len(ends) != jobs or set(ends) != {Status.READY}:
        raise AssertionError(f"{len(ends)} jobs instead of {jobs}, with the ends {set(ends)}")
    if findings := sweeps.run_audit(services):
        raise AssertionError(findings[0])


def main() -> int:
    """Measure the three cases; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--big", type=int, default=500, help="jobs of the owner with many")
    options = parser.parse_args()
    big = {"big": options.big}
    result: dict[str, float | int | bool] = {"slots": options.slots, "big": options.big}
    with tempfile.TemporaryDirectory(prefix="imprint-bench-") as folder, postgres_server() as server:
        for name, jobs, die in (("alone", SMALL, 0.0), ("beside", big | SMALL, 0.0), ("killed", big | SMALL, 0.02)):
            address = new_database(server)
            settings = Settings(_env_file=None, home=Path(folder) / name, database_url=address)
            services = Services(settings)
            services.database.migrate()
            simulation = Simulation(services, options.slots, die)
            begun = time.monotonic()
            if name == "killed":
                services.database.close()
                with schedulers(settings, 3) as kills:
                    outcome = simulation.run(jobs)
                result["schedulers_killed"], result["workers_killed"] = kills[0], simulation.deaths
            else:
                outcome = simulation.run(jobs)
            check(services, sum(jobs.values()))
            services.database.close()
            result[f"{name}_p95_ticks"], result[f"{name}_busy"] = outcome.p95(SMALL), round(outcome.busy, 3)
            print(
                f"{name:8} p95 {outcome.p95(SMALL):6.1f} ticks, busy {outcome.busy:.3f}, "
                f"{time.monotonic() - begun:.1f} s",
                flush=True,
            )
    result["fair"] = all(
        result[f"{name}_p95_ticks"] <= 1.5 * result["alone_p95_ticks"] and result[f"{name}_busy"] >= 0.95
        for name in ("beside", "killed")
    )
    print(json.dumps(result))
    return 0 if result["fair"] else 1


if __name__ == "__main__":
    sys.exit(main())
