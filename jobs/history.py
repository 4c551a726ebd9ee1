"""The events of jobs: those after a given event number, for one job or for many, and as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlmodel import col, func, select

from jobs import service
from jobs.services import Services
from storage.tables.jobs import ACTIVE, JobEvent

MAX_EVENTS = 2000  # in one answer; a caller that gets so many asks again


def events_of(services: Services, places: Mapping[str, int]) -> Sequence[JobEvent]:
    """The events of several jobs, oldest first: for each job those after the number beside it, at most MAX_EVENTS."""
    if not places:
        return []
    named = sa.values(sa.column("job_id", sa.String), sa.column("after", sa.BigInteger), name="place")
    place = named.data(list(places.items())).cte("place")
    query = (
        select(JobEvent)
        .join(place, sa.and_(col(JobEvent.job_id) == place.c.job_id, col(JobEvent.id) > place.c.after))
        .order_by(col(JobEvent.id))
        .limit(MAX_EVENTS)
    )
    with services.database.reading() as session:
        return session.exec(query).all()


def newest_event(services: Services, job_id: str, owner_id: str | None = None) -> int:
    """The number of a job's newest event; 0 for a job without events. Raises NotFound as `service.get_job` does."""
    with services.database.reading() as session:
        service.get_job(session, job_id, owner_id)
        query = select(func.max(JobEvent.id)).where(JobEvent.job_id == job_id)
        return session.exec(query).one() or 0


def position(services: Services, job_id: str, owner_id: str | None = None) -> tuple[bool, int]:
    """Whether a job is active, and the number of its newest event. Raises NotFound as `service.get_job` does.

    The number is read before the status of an active job, so that no later event is missed.
    """
    newest = newest_event(services, job_id, owner_id)
    with services.database.reading() as session:
        active = service.get_job(session, job_id, owner_id).status in ACTIVE
    return active, newest if active else newest_event(services, job_id, owner_id)


@dataclass(frozen=True)
class EventLine:
    """An event for people: its time in UTC, and what happened."""

    at: datetime
    text: str

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.text}"


def describe(events: Sequence[JobEvent]) -> list[EventLine]:
    """The events as text, one line each."""
    return [EventLine(event.at, _describe_event(event.kind, event.data)) for event in events]


def _describe_event(kind: str, data: Mapping[str, object]) -> str:
    fields = "  ".join(f"{key} {_short(value)}" for key, value in data.items() if value is not None)
    return f"{kind}: {fields}" if fields else kind


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(letter if letter.isprintable() else " " for letter in text)[:500]
