"""The state of the installation as Prometheus metrics, read from database and broker at each scrape.

Sums over tables are queried and not counted in memory: the counter of a killed process would be wrong. Sums that grow
with the tables are queried at most every 15 seconds, however often they are scraped.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict

import sqlalchemy as sa
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlmodel import Session, col, func, select

from core.clock import utcnow
from core.errors import FailureCode
from credits import ledger
from credits.tables import ENTRY
from jobs.lifecycle import sweeps
from jobs.remote import pod_costs
from jobs.services import Services
from notifications import outbox
from notifications.tables import MESSAGE
from storage.tables.jobs import ACTIVE, Job, JobEvent, JobPicture, Stage, Status
from storage.tables.remote import PodState, RemoteRun, RentedPod

_CACHE_S = 15.0
_DOLLAR = 1_000_000


class InstallationMetrics(Collector):
    """`lengths` returns the waiting messages of each queue, or None if no broker answers."""

    def __init__(self, services: Services, lengths: Callable[[], dict[str, int] | None]) -> None:
        self._services, self._lengths = services, lengths
        self._lock, self._until = threading.Lock(), 0.0
        self._cached: list[Metric] = []

    def describe(self) -> Iterable[Metric]:
        """Called on registration, which must not query the database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The current state."""
        yield from _queues(self._lengths())
        with self._services.database.reading() as session:
            yield from _waiting(session)
            yield from _sweeps(session, self._services)
            yield from _outbox(session)
            yield from _pods(session, self._services)
            yield from self._sums(session)

    def _sums(self, session: Session) -> list[Metric]:
        with self._lock:
            if time.monotonic() >= self._until:
                self._cached = [*_jobs(session), *_ledger(session)]
                self._until = time.monotonic() + _CACHE_S
            return self._cached


# ---- jobs -----------------------------------------------------------------------------------------------------


def _jobs(session: Session) -> Iterator[Metric]:
    family = GaugeMetricFamily("imprint_jobs", "Jobs by status and failure code.", labels=("status", "code"))
    query = select(Job.status, Job.failure_code, func.count()).group_by(col(Job.status), col(Job.failure_code))
    found = {(status, code or ""): count for status, code, count in session.exec(query)}
    alone = (Status.PENDING, Status.TRAINING, Status.READY)
    known: list[tuple[Status, str]] = [(status, "") for status in alone]
    known += [(Status.CANCELLED, "cancelled"), *((Status.FAILED, code) for code in FailureCode)]
    for status, code in dict.fromkeys([*known, *found]):  # zeros too, so that the first one is an increase
        family.add_metric((status, code), found.get((status, code), 0))
    yield family
    leaks = session.exec(select(func.count()).select_from(JobEvent).where(JobEvent.kind == "leak")).one()
    yield GaugeMetricFamily("imprint_leaks", "Trainings delivered that could not be charged.", leaks)


def _queues(lengths: dict[str, int] | None) -> Iterator[Metric]:
    yield GaugeMetricFamily("imprint_broker_up", "Whether the broker answered.", float(lengths is not None))
    family = GaugeMetricFamily("imprint_queue_messages", "Messages that wait in a queue.", labels=("queue",))
    for queue, length in (lengths or {}).items():
        family.add_metric((queue,), length)
    yield family


def _waiting(session: Session) -> Iterator[Metric]:
    """Active jobs by stage and state, and the longest wait for each stage."""
    now = utcnow()
    remote = sa.exists().where(col(RemoteRun.job_id) == col(Job.id), col(RemoteRun.ended_at).is_(None))
    at_picture = sa.exists().where(col(JobPicture.job_id) == col(Job.id), col(JobPicture.lease_until) > now)
    entered = (
        select(func.max(JobEvent.at, type_=JobEvent.__table__.c.at.type))  # type: ignore[attr-defined]
        .where(col(JobEvent.job_id) == col(Job.id), col(JobEvent.kind).in_(("stage", "status")))
        .scalar_subquery()
    )
    state_of = sa.case((sa.or_(col(Job.lease_until) > now, at_picture), "working"), (remote, "remote"), else_="waiting")
    rows = session.connection().execute(
        sa.select(col(Job.stage), state_of, entered, col(Job.created_at)).where(col(Job.status).in_(ACTIVE))
    )
    counts = {(stage, state): 0 for stage in Stage for state in ("waiting", "working", "remote")}
    oldest = {str(stage): 0.0 for stage in Stage}
    for stage, state, since, created_at in rows:
        counts[stage, state] += 1
        if state == "waiting":
            oldest[stage] = max(oldest[stage], (now - (since or created_at)).total_seconds())
    active = GaugeMetricFamily(
        "imprint_jobs_active",
        "Jobs that are not final, by stage: a worker is at it, a remote server trains it, or it waits.",
        labels=("stage", "state"),
    )  # fmt: skip
    age = GaugeMetricFamily(
        "imprint_queue_oldest_seconds", "How long the job that waits longest for a stage has waited.", labels=("stage",)
    )
    for (stage, state), count in counts.items():
        active.add_metric((stage, state), count)
    for stage, seconds in oldest.items():
        age.add_metric((stage,), seconds)
    yield from (active, age)


def _sweeps(session: Session, services: Services) -> Iterator[Metric]:
    last = sweeps.last_sweep(session)
    at = GaugeMetricFamily(
        "imprint_last_sweep_seconds", "Unix time at which the last sweep of any worker ended; 0: none."
    )
    at.add_metric((), last.timestamp() if last else 0.0)
    period = GaugeMetricFamily("imprint_sweep_period_seconds", "Seconds between two sweeps (IMPRINT_SWEEP_S).")
    period.add_metric((), services.settings.sweep_s)
    yield from (at, period)


# ---- messages -------------------------------------------------------------------------------------------------


def _outbox(session: Session) -> Iterator[Metric]:
    waiting = GaugeMetricFamily("imprint_outbox_waiting", "Messages that wait to be sent.", labels=("kind",))
    age = GaugeMetricFamily(
        "imprint_outbox_oldest_seconds", "How long the message that is due longest has been due.", labels=("kind",)
    )
    now = utcnow()
    query = (
        sa.select(MESSAGE.c.kind, sa.func.count(), sa.func.min(MESSAGE.c.due_at, type_=MESSAGE.c.due_at.type))
        .where(MESSAGE.c.sent_at.is_(None), MESSAGE.c.dead_at.is_(None))
        .group_by(MESSAGE.c.kind)
    )
    found = {kind: (count, oldest) for kind, count, oldest in session.connection().execute(query)}
    for kind in dict.fromkeys(["launch", "notice", *found]):
        count, oldest = found.get(kind, (0, now))
        waiting.add_metric((kind,), count)
        age.add_metric((kind,), max(0.0, (now - oldest).total_seconds()))
    dead = GaugeMetricFamily("imprint_outbox_dead", "Messages that were given up.", outbox.count_dead(session))
    yield from (waiting, age, dead)


# ---- money ----------------------------------------------------------------------------------------------------


def _ledger(session: Session) -> Iterator[Metric]:
    sums = asdict(ledger.totals(session))
    family = GaugeMetricFamily("imprint_credits", "Credits of all owners.", labels=("state",))
    for state in ("granted", "spent", "held"):
        family.add_metric((state,), float(sums[state]))
    yield family
    moved = CounterMetricFamily(
        "imprint_credits_moved", "Credits moved so far, by kind of entry: a settle charges, a release gives back.",
        labels=("kind",),
    )  # fmt: skip
    query = sa.select(ENTRY.c.kind, sa.func.sum(ENTRY.c.amount)).group_by(ENTRY.c.kind)
    found = {kind: float(amount) for kind, amount in session.connection().execute(query)}
    for kind in ("grant", "hold", "settle", "release", "expire", "refund"):
        moved.add_metric((kind,), found.get(kind, 0.0))
    yield moved


def _pods(session: Session, services: Services) -> Iterator[Metric]:
    settings = services.settings
    live = list(session.exec(select(RentedPod).where(RentedPod.state != PodState.GONE)))
    pods = GaugeMetricFamily("imprint_pods", "Rented machines that are not gone, by state.", labels=("state",))
    for state in PodState:
        if state != PodState.GONE:
            pods.add_metric((state,), sum(pod.state == state for pod in live))
    yield pods
    dollars = GaugeMetricFamily(
        "imprint_pods_dollars", "What rented machines cost: per hour now, and in the last 24 hours.",
        labels=("period",),
    )  # fmt: skip
    dollars.add_metric(("hour",), pod_costs.per_hour(live) / _DOLLAR)
    dollars.add_metric(("day",), pod_costs.spent_in_a_day(session, utcnow()) / _DOLLAR)
    ceilings = GaugeMetricFamily(
        "imprint_pods_ceiling_dollars", "The ceilings on what rented machines may cost.", labels=("period",)
    )
    ceilings.add_metric(("hour",), settings.spend_per_hour)
    ceilings.add_metric(("day",), settings.spend_per_day)
    yield from (dollars, ceilings)
