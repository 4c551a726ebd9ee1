"""What `/metrics` shows: what this process answered, and the state of the installation, asked of the database.

Sums over tables are asked once per scrape, not kept up in passing: a counter in a process that was killed lies.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from sqlmodel import Session, col, func, select

from core.clock import utcnow
from credits import ledger
from jobs.wiring import House
from notifications import outbox
from notifications.tables import MESSAGE
from storage.tables import Job, JobEvent

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Measures:
    """The metrics of one app."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._registry = CollectorRegistry()
        self._answers = Counter(
            "imprint_http_requests", "Requests by method, route and status.", ("method", "route", "status"),
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "imprint_http_request_seconds", "Time from request to the end of the answer; event streams are left out.",
            ("route",), registry=self._registry, buckets=_SECONDS,
        )  # fmt: skip
        self._registry.register(self)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        known = method if method in ("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS") else "other"
        self._answers.labels(known, route, str(status)).inc()
        if not route.endswith("/events"):
            self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Called on registration, where the database is not to be asked."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The state of the installation, asked now."""
        with self._house.database.reading() as session:
            yield _jobs(session)
            yield from _outbox(session)
            yield from _ledger(session)
            leaks = select(func.count()).select_from(JobEvent).where(JobEvent.kind == "leak")
            yield GaugeMetricFamily(
                "imprint_leaks", "Trainings delivered that could not be charged.", session.exec(leaks).one()
            )


def _jobs(session: Session) -> Metric:
    family = GaugeMetricFamily("imprint_jobs", "Jobs by status and failure code.", labels=("status", "code"))
    query = select(Job.status, Job.failure_code, func.count()).group_by(col(Job.status), col(Job.failure_code))
    for status, code, count in session.exec(query):
        family.add_metric((status, code or ""), count)
    return family


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
    for kind, count, oldest in session.connection().execute(query):
        waiting.add_metric((kind,), count)
        age.add_metric((kind,), max(0.0, (now - oldest).total_seconds()))
    yield from (
        waiting,
        age,
        GaugeMetricFamily("imprint_outbox_dead", "Messages that were given up.", outbox.count_dead(session)),
    )


def _ledger(session: Session) -> Iterator[Metric]:
    sums = asdict(ledger.totals(session))
    family = GaugeMetricFamily("imprint_credits", "Credits of all owners.", labels=("state",))
    for state in ("granted", "spent", "held"):
        family.add_metric((state,), float(sums[state]))
    yield family
