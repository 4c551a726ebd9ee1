"""Workers with slots, on a real database. Time is counted in ticks, so a slow machine changes no figure."""

import random
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import col, select

from benchmarks.fairness.kills import Kill, KillPlan
from benchmarks.fairness.workers import Step, Steps, patiently
from core.clock import utcnow
from jobs import service
from jobs.admission import workers
from jobs.admission.places import Places
from jobs.lifecycle import sweeps
from jobs.lifecycle.leases import Lease
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import intake
from notifications import outbox
from storage.tables.jobs import Job, Stage, Status

QUEUE = "train.sd15"
TICKS = 4  # of a training, give or take one
_SWEEP_TICKS = 10


@dataclass
class Outcome:
    """What a run showed, in ticks: waits by owner, and how wrong the expected times of waiting jobs were."""

    waits: dict[str, list[int]] = field(default_factory=dict)
    errors: dict[str, list[float]] = field(default_factory=lambda: {"start": [], "end": []})
    trained: int = 0  # slots with a training, summed over the ticks
    offered: int = 0  # slots that could have had one

    def p95(self, owners: Mapping[str, int]) -> float:
        """Of the waits of these owners."""
        waits = sorted(wait for owner in owners for wait in self.waits[owner])
        return waits[min(len(waits) - 1, int(0.95 * len(waits)))]

    @property
    def busy(self) -> float:
        return self.trained / max(self.offered, 1)

    def mean_error(self, of: str) -> float:
        """Of the expected `start` or `end`, as a part of the mean wait."""
        waits = [wait for of_owner in self.waits.values() for wait in of_owner]
        errors = self.errors[of]
        return (sum(errors) / max(len(errors), 1)) / max(sum(waits) / max(len(waits), 1), 1)


@dataclass
class Training:
    """A training that runs on a worker."""

    lease: Lease
    worker: int
    left: int  # ticks


class Simulation:
    """`workers` train, each with `slots` slots; `schedulers` decide beside them; `plan` kills some of them.

    The simulation itself is the broker, the relay and the sweep: it delivers a message again whose worker died.
    """

    def __init__(
        self, services: Services, workers: Sequence[Steps], slots: int, schedulers: Sequence[Steps] = (),
        plan: KillPlan | None = None, seed: int = 7,
    ) -> None:  # fmt: skip
        self._services, self._workers, self._slots = services, workers, slots
        self._schedulers, self._plan = schedulers, plan or KillPlan()
        self._random = random.Random(seed)
        self._queue: deque[str] = deque()  # what the broker holds, oldest first
        self._new: list[str] = []  # launched since the last tick
        self._training: dict[str, Training] = {}
        self._left: dict[str, int] = {}  # ticks that a training still needs: checkpoints survive
        self._owners: dict[str, str] = {}
        self._expected: dict[str, tuple[float, float]] = {}
        self._begun: set[str] = set()
        self._tick = 0
        self.outcome = Outcome()

    def run(self, jobs: Mapping[str, int]) -> Outcome:
        """Accept so many jobs of each owner, the first owner's first, and work until all are final."""
        for owner_id, count in jobs.items():
            self._beat()
            self._submit(owner_id, count)
        self._beat()
        self._note_expected()
        while not patiently(self._is_over):
            self._tick += 1
            some_wait = patiently(self._some_wait)
            self._work()
            self.outcome.trained += len(self._training)
            self.outcome.offered += self._slots * len(self._workers) if some_wait else len(self._training)
            if self._tick % _SWEEP_TICKS == 0:
                self._sweep()
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
            patiently(self._take_messages)  # a relay runs all the time, and a job is prepared within seconds
            steps, self._new = [Step("prepare", job_id) for job_id in self._new], []
            self._workers[0].send(steps)
            self._take_results(0, steps, self._workers[0].results())

    def _note_expected(self) -> None:
        """What the owners of waiting jobs are told once all jobs are known, in ticks from now."""
        now = utcnow()
        places = Places(self._services.database, self._services.settings)  # those of the services are seconds old
        with self._services.database.reading() as session:
            waiting = session.exec(select(Job).where(col(Job.admitted_at).is_(None))).all()
            places.get(session, waiting[0])
            places.wait()  # of many jobs, a thread computes them
            for job in waiting:
                found = places.get(session, job)
                if found.start is not None and found.end is not None:
                    per_tick = job.expected_s / TICKS
                    self._expected[job.id] = _seconds(now, found.start) / per_tick, _seconds(now, found.end) / per_tick

    def _work(self) -> None:
        """One tick: what is finished is delivered, what was launched is prepared, and free slots begin.

        Something may be killed in each of the three.
        """
        counts = {"scheduler": len(self._schedulers), "worker": len(self._workers)}
        kills = self._plan.at(self._tick, counts)
        for phase, plan in enumerate((self._completions, self._preparations, self._starts)):
            tasks = plan()
            now = [kill for kill in kills if kill.phase == phase]
            if now or any(tasks):
                self._do(tasks, now)

    def _completions(self) -> list[list[Step]]:
        tasks: list[list[Step]] = [[] for _ in self._workers]
        for job_id, training in self._training.items():
            training.left -= 1
            self._left[job_id] = training.left
            if training.left <= 0:
                tasks[training.worker].append(Step("complete", job_id, training.lease))
        return tasks

    def _preparations(self) -> list[list[Step]]:
        patiently(self._take_messages)
        launched, self._new = self._new, []
        return [[Step("prepare", job_id) for job_id in launched[n :: len(self._workers)]]
                for n in range(len(self._workers))]  # fmt: skip

    def _starts(self) -> list[list[Step]]:
        tasks: list[list[Step]] = [[] for _ in self._workers]
        at_work = Counter(training.worker for training in self._training.values())
        while self._queue:
            number = min(range(len(tasks)), key=lambda one: at_work[one])
            if at_work[number] >= self._slots:
                break
            at_work[number] += 1
            tasks[number].append(Step("train", self._queue.popleft()))
        return tasks

    def _do(self, tasks: Sequence[Sequence[Step]], kills: Sequence[Kill]) -> None:
        """Have all workers do their steps at once, while schedulers decide, and kill some of them meanwhile."""
        for scheduler in self._schedulers:
            scheduler.send([Step("decide")])
        for worker, steps in zip(self._workers, tasks, strict=True):
            worker.send(steps)
        self._kill(kills)
        for number, (worker, steps) in enumerate(zip(self._workers, tasks, strict=True)):
            self._take_results(number, steps, worker.results())
        for scheduler in self._schedulers:
            scheduler.results()
        for kill in kills:
            if kill.what == "worker":
                self._lose(kill.number)

    def _kill(self, kills: Sequence[Kill]) -> None:
        begun = time.monotonic()
        for kill in kills:
            time.sleep(max(0.0, begun + kill.after_s - time.monotonic()))
            self._plan.done[kill.what] += 1
            if kill.what == "database":
                self._plan.restart_database()
            else:
                (self._workers if kill.what == "worker" else self._schedulers)[kill.number].kill()

    def _take_results(self, worker: int, steps: Sequence[Step], results: Sequence[Lease | None]) -> None:
        for step, lease in zip(steps, results, strict=False):
            if step.name == "complete":
                self._training.pop(step.job_id, None)
                self._note_end(step.job_id)
            elif step.name == "prepare":
                self._queue.append(step.job_id)
            elif lease is not None:
                left = self._left.get(step.job_id, self._random.choice((TICKS - 1, TICKS, TICKS + 1)))
                self._training[step.job_id] = Training(lease, worker, max(left, 1))
                self._note_start(step.job_id)
        for step in reversed(steps[len(results) :]):  # not acknowledged: the broker delivers them again
            self._training.pop(step.job_id, None)
            if step.name == "prepare":
                self._new.append(step.job_id)
            else:
                self._queue.appendleft(step.job_id)

    def _note_start(self, job_id: str) -> None:
        if job_id not in self._begun:
            self._begun.add(job_id)
            self.outcome.waits.setdefault(self._owners[job_id], []).append(self._tick)
            if job_id in self._expected:
                self.outcome.errors["start"].append(abs(self._tick - self._expected[job_id][0]))

    def _note_end(self, job_id: str) -> None:
        if job_id in self._expected:
            self.outcome.errors["end"].append(abs(self._tick - self._expected[job_id][1]))

    def _lose(self, worker: int) -> None:
        """A worker died: the broker delivers its messages again, once nobody renews their leases."""
        lost = [job_id for job_id, training in self._training.items() if training.worker == worker]
        for job_id in lost:
            del self._training[job_id]
        self._queue.extendleft(reversed(lost))
        patiently(self._end_leases)

    def _sweep(self) -> None:
        patiently(self._end_leases)
        patiently(lambda: sweeps.repair_jobs(self._services))
        patiently(lambda: sweeps.admit_jobs(self._services))
        self._beat()

    def _beat(self) -> None:
        for number in range(len(self._workers)):
            patiently(lambda name=f"worker@{number}": workers.beat(self._services, name, [QUEUE], self._slots))  # type: ignore[misc]

    def _end_leases(self) -> None:
        """The leases that no training here renews are over."""
        with self._services.database.writing() as session:
            # Of a training, a checkpoint was stored: the attempts begin again.
            ended = sa.update(Job).where(col(Job.lease_until).is_not(None), ~col(Job.id).in_(self._training))
            values = {"lease_until": utcnow() - timedelta(seconds=1), "attempt": 1}
            session.connection().execute(ended.values(**values))

    def _is_over(self) -> bool:
        with self._services.database.reading() as session:
            return session.exec(select(Job.id).where(col(Job.finished_at).is_(None)).limit(1)).first() is None

    def _some_wait(self) -> bool:
        with self._services.database.reading() as session:
            waiting = select(Job.id).where(
                Job.status == Status.PENDING, Job.stage == Stage.PREPROCESS, col(Job.admitted_at).is_(None)
            )
            return session.exec(waiting.limit(1)).first() is not None

    def _take_messages(self) -> None:
        """The relay: launches go to the broker, and are marked as sent after that."""
        with self._services.database.writing() as session:
            launches = outbox.claim(session, utcnow(), ("launch",), 1000, lease=timedelta(0))
        self._new += [message.job_id for message in launches if message.job_id and message.job_id not in self._new]
        if launches:
            with self._services.database.writing() as session:
                for message in launches:
                    outbox.mark_sent(session, message.id)


def _seconds(since: datetime, until: datetime) -> float:
    return (until - since).total_seconds()
