"""The place of a waiting job in the order, and when it and the jobs in flight are expected to start and end.

The order of `decide` is played through in memory, as if nothing else came. That is linear in the waiting jobs, so a
process does it at most every few seconds for each queue.
"""

import heapq
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.settings import Settings
from jobs.admission.decide import ALIVE_S, decay_of
from jobs.admission.expected import Expected
from jobs.admission.queues import is_waiting
from storage.tables.admission import OwnerShare, TrainingWorker
from storage.tables.jobs import ACTIVE, Job, Stage

_CACHE_S = 3.0
_LEAST_AGE_S = 0.2  # also for a job that is not known yet
_MOST = 20_000  # jobs whose places are computed
_EARLY = (Stage.PREPROCESS, Stage.CAPTION, Stage.DATASET, Stage.TRAIN)


@dataclass(frozen=True)
class _Waiting:
    id: str
    owner_id: str
    priority: int
    created_at: datetime
    seconds: float


class Places:
    """The expectations for all active jobs of a queue, at most some seconds old."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, dict[str, Expected]]] = {}

    def get(self, session: Session, job: Job, settings: Settings) -> Expected:
        """What is expected of one job; nothing of a final one, or one that has left the train stage."""
        if job.status not in ACTIVE or not job.queue or job.stage not in _EARLY:
            return Expected()
        with self._lock:
            at, known = self._known.get(job.queue, (-_CACHE_S, {}))
            age_s = time.monotonic() - at
            if age_s >= _CACHE_S or (job.id not in known and age_s >= _LEAST_AGE_S):
                known = _expect(session, job.queue, settings)
                self._known[job.queue] = time.monotonic(), known
        expected = known.get(job.id, Expected())
        has_gone = job.admitted_at is not None and expected.place is not None
        return replace(expected, place=None) if has_gone else expected


def _expect(session: Session, queue: str, settings: Settings) -> dict[str, Expected]:
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
    for place, waiting in enumerate(order, 1):
        found[waiting.id] = _take(free, waiting.seconds, now, place)
    return found


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


def _order(session: Session, queue: str, settings: Settings, now: datetime) -> list[_Waiting]:
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
    order = []
    while heap:
        rank, share, _, _, key, index = heapq.heappop(heap)
        if share < used[key[0]]:  # another job of the owner has gone first meanwhile
            job = lines[key][index]
            heapq.heappush(heap, (rank, used[key[0]], job.created_at, job.id, key, index))
            continue
        job = lines[key][index]
        order.append(job)
        used[key[0]] += job.seconds / weights[key[0]]
        push(key, index + 1)
    return order


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
