"""The place of a waiting job in the order, and when it and the jobs in flight are expected to start and end.

The order of `decide` is played through in memory, as if nothing else came. That is linear in the waiting jobs, so a
process spends at most a twentieth of its time on it: meanwhile the last result answers, and a job that was accepted
since then is put between its jobs.
"""

import heapq
import threading
import time
from bisect import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.settings import Settings
from jobs.admission.decide import ALIVE_S, decay_of
from jobs.admission.expected import Expected
from jobs.admission.queues import QUEUES, is_waiting
from storage.tables.admission import OwnerShare, TrainingWorker
from storage.tables.jobs import ACTIVE, Job, Stage

_CACHE_S = 3.0
_LEAST_AGE_S = 0.2  # also for a job that is not known yet
_AGE_PER_COST = 20.0  # a result is kept for at least so many times the seconds that it took
_MOST = 20_000  # jobs whose places are computed
_EARLY = (Stage.PREPROCESS, Stage.CAPTION, Stage.DATASET, Stage.TRAIN)
# What jobs are ordered by: rank, used seconds of the owner, time and id.
_Key = tuple[int, float, datetime, str]


@dataclass(frozen=True)
class _Waiting:
    id: str
    owner_id: str
    priority: int
    created_at: datetime
    seconds: float


@dataclass(frozen=True)
class _Order:
    """The waiting jobs as they will be admitted, with the keys that they are ordered by."""

    jobs: Sequence[_Waiting]
    keys: Sequence[_Key]
    used: dict[str, float]  # by owner, once all its waiting jobs are admitted

    def place_of(self, job: Job) -> int:
        """About where a job comes that was accepted later: after the others of its owner."""
        key = (-int(job.priority), self.used.get(job.owner_id, 0.0), job.created_at, job.id)
        return bisect(self.keys, key) + 1


@dataclass(frozen=True)
class _Known:
    """The expectations for the jobs of a queue. `cost_s`: how long it took to compute them."""

    at: float
    cost_s: float
    order: _Order
    expected: dict[str, Expected]

    def age_s(self) -> float:
        return time.monotonic() - self.at

    def get(self, job: Job) -> Expected:
        found = self.expected.get(job.id)
        if found is None and job.admitted_at is None:
            place = self.order.place_of(job)
            like = self.order.jobs[min(place, len(self.order.jobs)) - 1] if self.order.jobs else None
            near = self.expected[like.id] if like else Expected()
            return replace(near, place=place)
        return found or Expected()


@dataclass
class _Queue:
    """What is known of a queue, and the lock of the thread that computes it anew."""

    known: _Known | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Places:
    """The expectations for all active jobs of a queue, some seconds old."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = defaultdict(_Queue)

    def get(self, session: Session, job: Job, settings: Settings) -> Expected:
        """What is expected of one job; nothing of a final one, or one that has left the train stage."""
        if job.status not in ACTIVE or job.queue not in QUEUES or job.stage not in _EARLY:
            return Expected()
        queue = self._queues[job.queue]
        if _is_old(queue.known, job) and queue.lock.acquire(blocking=queue.known is None):
            try:
                if _is_old(queue.known, job):  # another thread may have been here
                    queue.known = _compute(session, job.queue, settings)
            finally:
                queue.lock.release()
        expected = queue.known.get(job) if queue.known else Expected()
        has_gone = job.admitted_at is not None and expected.place is not None
        return replace(expected, place=None) if has_gone else expected


def _is_old(known: _Known | None, job: Job) -> bool:
    if known is None:
        return True
    least_s = _CACHE_S if job.id in known.expected else _LEAST_AGE_S
    return known.age_s() >= max(least_s, _AGE_PER_COST * known.cost_s)


def _compute(session: Session, queue: str, settings: Settings) -> _Known:
    begun = time.monotonic()
    order, expected = _expect(session, queue, settings)
    now = time.monotonic()
    return _Known(now, now - begun, order, expected)


def _expect(session: Session, queue: str, settings: Settings) -> tuple[_Order, dict[str, Expected]]:
    now = utcnow()
    order = _order(session, queue, settings, now)
    slots = _slots(session, queue, now)
    flying = session.exec(
        select(Job).where(
            col(Job.status).in_(ACTIVE), Job.queue == queue, col(Job.admitted_at).is_not(None),
            col(Job.stage).in_(_EARLY),
        ).order_by(col(Job.admitted_at))
    ).all()  # fmt: skip
    free = [0.0] * slots
    found: dict[str, Expected] = {}
    for job in sorted(flying, key=_has_begun, reverse=True):
        begun = _has_begun(job)
        left_s = job.seconds_left if begun and job.seconds_left is not None else job.expected_s
        found[job.id] = _take(free, left_s, now, None, has_begun=begun)
    for place, waiting in enumerate(order.jobs, 1):
        found[waiting.id] = _take(free, waiting.seconds, now, place)
    return order, found


def _has_begun(job: Job) -> bool:
    return job.stage == Stage.TRAIN and job.step > 0


def _take(free: list[float], seconds: float, now: datetime, place: int | None, has_begun: bool = False) -> Expected:
    """The job takes the slot that is free first. `free`: a heap, in seconds from now."""
    if not free:
        return Expected(place)
    start_s = heapq.heappop(free)
    heapq.heappush(free, start_s + seconds)
    start = None if has_begun else now + timedelta(seconds=start_s)
    return Expected(place, start, now + timedelta(seconds=start_s + seconds))


def _slots(session: Session, queue: str, now: datetime) -> int:
    slots = select(sa.func.coalesce(sa.func.sum(TrainingWorker.slots), 0)).where(
        TrainingWorker.queue == queue, ~col(TrainingWorker.draining),
        col(TrainingWorker.seen_at) > now - timedelta(seconds=ALIVE_S),
    )  # fmt: skip
    return int(session.exec(slots).one())


def _order(session: Session, queue: str, settings: Settings, now: datetime) -> _Order:
    """The waiting jobs of a queue in the order of their admission."""
    columns = (col(Job.id), col(Job.owner_id), col(Job.priority), col(Job.created_at), col(Job.expected_s))
    waits = sa.select(*columns).where(col(Job.queue) == queue, is_waiting())
    rows = session.connection().execute(waits.order_by(col(Job.created_at), col(Job.id)).limit(_MOST))
    lines: dict[tuple[str, int], list[_Waiting]] = defaultdict(list)
    for row in rows:
        waiting = _Waiting(*row)
        lines[waiting.owner_id, waiting.priority].append(waiting)
    used, weights, last = _shares(session, {owner for owner, _ in lines}, settings, now)
    heap: list[tuple[int, float, datetime, str, tuple[str, int], int]] = []

    def push(key: tuple[str, int], index: int) -> None:
        if index < len(lines[key]):
            job = lines[key][index]
            since = max(job.created_at.timestamp(), last.get(key, 0.0))
            raised = min(2, int((now.timestamp() - since) / settings.admission_raise_s)) if index == 0 else 0
            heapq.heappush(heap, (-(job.priority + raised), used[key[0]], job.created_at, job.id, key, index))

    for key in lines:
        push(key, 0)
    order: list[_Waiting] = []
    keys: list[_Key] = []
    while heap:
        rank, share, created_at, job_id, key, index = heapq.heappop(heap)
        if share < used[key[0]]:  # another job of the owner has gone first meanwhile
            heapq.heappush(heap, (rank, used[key[0]], created_at, job_id, key, index))
            continue
        job = lines[key][index]
        order.append(job)
        keys.append((rank, share, created_at, job_id))
        used[key[0]] += job.seconds / weights[key[0]]
        push(key, index + 1)
    return _Order(order, keys, dict(used))


def _shares(
    session: Session, owners: set[str], settings: Settings, now: datetime
) -> tuple[dict[str, float], dict[str, float], dict[tuple[str, int], float]]:
    """What each owner has used, divided by its weight; the weights; the last admission by owner and class."""
    flight = session.exec(
        select(Job.owner_id, sa.func.sum(Job.expected_s))
        .where(col(Job.status).in_(ACTIVE), col(Job.admitted_at).is_not(None), col(Job.stage).in_(_EARLY))
        .group_by(Job.owner_id)
    ).all()
    used, weights = defaultdict(float, flight), defaultdict(lambda: 1.0)
    last: dict[tuple[str, int], float] = {}
    for share in session.exec(select(OwnerShare)):
        if share.owner_id in owners:
            weights[share.owner_id] = share.weight
            used[share.owner_id] += decay_of(share.used_s, share.used_at, settings, now)
            last |= {(share.owner_id, n): at for n, at in enumerate((share.low_at, share.normal_at, share.high_at))}
    return defaultdict(float, {o: s / weights[o] for o, s in used.items()}), weights, last
