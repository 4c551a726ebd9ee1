"""The place of a waiting job in the order, and when it and the jobs in flight are expected to start and end.

The order of `decide` is played through in memory, as if nothing else came. That is linear in the waiting jobs. Of many
jobs, a thread computes it, so that no request waits for it, and spends at most a twentieth of the process's time on
it. Meanwhile the last result answers, and a job that was accepted since then is put between its jobs. Until there is a
first result, the place is that by age.
"""

import heapq
import logging
import threading
import time
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.settings import Settings
from jobs.admission.expected import Expected
from jobs.admission.queues import every_queue, is_waiting
from jobs.admission.statement import ALIVE_S, decay_of
from storage.database import Database
from storage.tables.admission import OwnerShare, TrainingWorker
from storage.tables.jobs import ACTIVE, IN_FLIGHT, Job, Stage

_CACHE_S = 3.0
_LEAST_AGE_S = 0.2  # also for a job that is not known yet
_AGE_PER_COST = 20.0  # a result is kept for at least so many times the seconds that it took
_MOST = 20_000  # jobs whose places are computed
_FEW = 500  # jobs whose places the request computes itself
_AT_ONCE, _PAUSE_S = 64, 0.001  # after so many jobs, other threads run: they need the interpreter's lock
_EARLY = (Stage.PREPROCESS, Stage.CAPTION, Stage.DATASET, Stage.TRAIN)
# What jobs are ordered by: rank, used seconds of the owner, time and id.
_Key = tuple[int, float, datetime, str]

log = logging.getLogger(__name__)


class _Waiting(NamedTuple):
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


class _Times(NamedTuple):
    """What is expected of a job, in seconds from the time of the result."""

    place: int | None
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class _Known:
    """The expectations for the jobs of a queue at a time. `cost_s`: the CPU time that it took to compute them."""

    now: datetime
    at: float
    cost_s: float
    order: _Order
    times: dict[str, _Times]

    def age_s(self) -> float:
        return time.monotonic() - self.at

    def get(self, job: Job) -> Expected:
        found = self.times.get(job.id)
        if found is None and job.admitted_at is None:
            place = self.order.place_of(job)
            like = self.order.jobs[min(place, len(self.order.jobs)) - 1] if self.order.jobs else None
            near = self.times[like.id] if like else _Times(None)
            found = near._replace(place=place)
        if found is None:
            return Expected()
        return Expected(found.place, self._time(found.start_s), self._time(found.end_s))

    def _time(self, seconds: float | None) -> datetime | None:
        return None if seconds is None else self.now + timedelta(seconds=seconds)


@dataclass
class _Queue:
    """What is known of a queue, and the thread that computes it again."""

    known: _Known | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    thread: threading.Thread | None = None


class Places:
    """The expectations for all active jobs of a queue, some seconds old."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings
        self._queues: dict[str, _Queue] = defaultdict(_Queue)

    def get(self, session: Session, job: Job) -> Expected:
        """What is expected of one job; nothing of a final one, or one that has left the train stage."""
        if job.status not in ACTIVE or job.queue not in every_queue() or job.stage not in _EARLY:
            return Expected()
        queue = self._queues[job.queue]
        if _is_old(queue.known, job.id):
            self._renew(session, queue, job.queue, job.id)
        if queue.known is None:
            return Expected(_place_by_age(session, job)) if job.admitted_at is None else Expected()
        expected = queue.known.get(job)
        has_gone = job.admitted_at is not None and expected.place is not None
        return replace(expected, place=None) if has_gone else expected

    def come_next(self, session: Session, name: str, most: int) -> list[str]:
        """The ids of the jobs of a queue that come next, as it was some seconds ago; none until that is known."""
        queue = self._queues[name]
        if _is_old(queue.known):
            self._renew(session, queue, name)
        return [] if queue.known is None else [job.id for job in queue.known.order.jobs[:most]]

    def wait(self) -> None:
        """Wait until what is computed now is known."""
        for queue in list(self._queues.values()):
            if queue.thread is not None:
                queue.thread.join()

    def _renew(self, session: Session, queue: _Queue, name: str, job_id: str | None = None) -> None:
        """Compute the expectations again: here if there are few jobs, or else in a thread, unless it is at it."""
        is_few = _has_few(session, name)
        if not queue.lock.acquire(blocking=is_few and queue.known is None):
            return
        try:
            if not _is_old(queue.known, job_id):  # another thread was here meanwhile
                return
            if is_few:
                queue.known = _compute(session, name, self._settings)
            elif queue.thread is None or not queue.thread.is_alive():
                queue.thread = threading.Thread(
                    target=self._compute, args=(queue, name), name=f"places {name}", daemon=True
                )
                queue.thread.start()
        finally:
            queue.lock.release()

    def _compute(self, queue: _Queue, name: str) -> None:
        try:
            with self._database.reading() as session:
                queue.known = _compute(session, name, self._settings, _let_others_run)
        except Exception:
            log.exception("the places of the jobs in %s could not be computed", name)


def _has_few(session: Session, queue: str) -> bool:
    waits = sa.select(sa.literal(1)).select_from(Job).where(col(Job.queue) == queue, is_waiting()).limit(_FEW + 1)
    count = sa.select(sa.func.count()).select_from(waits.subquery())
    return int(session.connection().execute(count).scalar_one()) <= _FEW


def _place_by_age(session: Session, job: Job) -> int:
    """The place of a waiting job by class and age alone."""
    is_before = sa.or_(
        col(Job.priority) > job.priority,
        sa.and_(col(Job.priority) == job.priority, col(Job.created_at) < job.created_at),
    )
    before = sa.select(sa.func.count()).select_from(Job).where(col(Job.queue) == job.queue, is_waiting(), is_before)
    return int(session.connection().execute(before).scalar_one()) + 1


def _is_old(known: _Known | None, job_id: str | None = None) -> bool:
    """Whether to compute again, for one job or for all."""
    if known is None:
        return True
    least_s = _CACHE_S if job_id is None or job_id in known.times else _LEAST_AGE_S
    return known.age_s() >= max(least_s, _AGE_PER_COST * known.cost_s)


def _let_others_run(number: int) -> None:
    """Pause after some jobs: for the thread, which computes the places of many."""
    if number % _AT_ONCE == 0:
        time.sleep(_PAUSE_S)


def _compute(
    session: Session, queue: str, settings: Settings, after: Callable[[int], None] = lambda _number: None
) -> _Known:
    """after: called with the number of jobs that are done."""
    begun, now = time.thread_time(), utcnow()
    order = _order(session, queue, settings, now, after)
    slots = _slots(session, queue, now)
    columns: tuple[Any, ...] = (col(Job.id), col(Job.stage), col(Job.step), col(Job.seconds_left), col(Job.expected_s))
    in_flight = sa.select(*columns).where(IN_FLIGHT, col(Job.queue) == queue, col(Job.stage).in_(_EARLY))
    flying = session.connection().execute(in_flight.order_by(col(Job.admitted_at))).all()
    free = [0.0] * slots
    times: dict[str, _Times] = {}
    for job in sorted(flying, key=_has_begun, reverse=True):
        begun_already = _has_begun(job)
        left_s = job.seconds_left if begun_already and job.seconds_left is not None else job.expected_s
        times[job.id] = _take(free, left_s, None, has_begun=begun_already)
    for place, waiting in enumerate(order.jobs, 1):
        times[waiting.id] = _take(free, waiting.seconds, place)
        after(place)
    return _Known(now, time.monotonic(), time.thread_time() - begun, order, times)


def _has_begun(job: sa.Row[Any]) -> bool:
    return bool(job.stage == Stage.TRAIN and job.step > 0)


def _take(free: list[float], seconds: float, place: int | None, has_begun: bool = False) -> _Times:
    """The job takes the slot that is free first. `free`: a heap, in seconds from now."""
    if not free:
        return _Times(place)
    start_s = heapq.heappop(free)
    heapq.heappush(free, start_s + seconds)
    return _Times(place, None if has_begun else start_s, start_s + seconds)


def _slots(session: Session, queue: str, now: datetime) -> int:
    slots = select(sa.func.coalesce(sa.func.sum(TrainingWorker.slots), 0)).where(
        TrainingWorker.queue == queue, ~col(TrainingWorker.draining),
        col(TrainingWorker.seen_at) > now - timedelta(seconds=ALIVE_S),
    )  # fmt: skip
    return int(session.exec(slots).one())


def _order(session: Session, queue: str, settings: Settings, now: datetime, after: Callable[[int], None]) -> _Order:
    """The waiting jobs of a queue in the order of their admission."""
    columns = (col(Job.id), col(Job.owner_id), col(Job.priority), col(Job.created_at), col(Job.expected_s))
    waits = sa.select(*columns).where(col(Job.queue) == queue, is_waiting())
    found = session.connection().execute(waits.order_by(col(Job.created_at), col(Job.id)).limit(_MOST))
    lines: dict[tuple[str, int], list[_Waiting]] = defaultdict(list)
    for rows in found.partitions(_AT_ONCE):
        for waiting in map(_Waiting._make, rows):
            lines[waiting.owner_id, waiting.priority].append(waiting)
        after(0)
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
        after(len(order))
    return _Order(order, keys, dict(used))


def _shares(
    session: Session, owners: set[str], settings: Settings, now: datetime
) -> tuple[dict[str, float], dict[str, float], dict[tuple[str, int], float]]:
    """What each owner has used, divided by its weight; the weights; the last admission by owner and class."""
    flight = session.exec(
        select(Job.owner_id, sa.func.sum(Job.expected_s))
        .where(IN_FLIGHT, col(Job.stage).in_(_EARLY))
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
