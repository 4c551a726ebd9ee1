"""The events and messages of old trainings are deleted by `history_days`, in batches; nothing else is."""

from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlmodel import col, func, select

from core.clock import utcnow
from jobs import service
from jobs.deletion import history
from jobs.lifecycle import sweeps
from jobs.services import Services
from notifications import outbox
from notifications.messages import WAITING
from notifications.tables import MESSAGE
from storage.tables.jobs import Job, JobEvent, JobPicture
from tests.contract.jobs import request

OLD = timedelta(days=91)


def cancelled(services: Services, *, delivered: bool = True) -> str:
    """A job that ended 91 days ago, and whose notices were sent or not."""
    job_id: str = service.submit(services, request(services)).job_id
    service.cancel(services, job_id)
    with services.database.writing() as session:
        session.execute(sa.update(Job).where(col(Job.id) == job_id).values(finished_at=utcnow() - OLD))
        if delivered:
            session.execute(
                sa.update(MESSAGE).where(MESSAGE.c.job_id == job_id, WAITING).values(sent_at=utcnow() - OLD)
            )
    return job_id


def counts(services: Services, job_id: str) -> tuple[int, int, int]:
    """How many events, messages and pictures a job has."""
    with services.database.reading() as session:
        tables = (
            (JobEvent.id, JobEvent.job_id),
            (MESSAGE.c.id, MESSAGE.c.job_id),
            (JobPicture.position, JobPicture.job_id),
        )
        found = [
            session.execute(select(func.count(counted)).where(of == job_id)).scalar_one() for counted, of in tables
        ]
        return found[0], found[1], found[2]


@pytest.fixture
def keeping(services: Services) -> Services:
    return Services(services.settings.model_copy(update={"history_days": 90}))


def test_the_history_of_old_trainings_is_deleted_and_the_trainings_stay(
    services: Services, keeping: Services, job_id: str
) -> None:
    old, waits = cancelled(services), cancelled(services, delivered=False)
    before = {one: counts(services, one) for one in (old, waits, job_id)}
    with services.database.writing() as session:
        outbox.put(session, "alert", job_id=None, payload={})
        sent = {"created_at": utcnow() - OLD, "sent_at": utcnow() - OLD}
        session.execute(sa.update(MESSAGE).where(MESSAGE.c.job_id.is_(None)).values(**sent))
    view = service.get(services, old)

    assert history.trim(services) == 0  # off by default
    assert counts(services, old) == before[old]
    assert history.trim(keeping) == 1
    assert history.trim(keeping) == 0
    assert counts(services, old) == (0, 0, 5)
    assert counts(services, waits) == before[waits], "its notice has not been sent yet"
    assert counts(services, job_id) == before[job_id]
    with services.database.reading() as session:
        assert session.execute(select(func.count()).where(MESSAGE.c.job_id.is_(None))).scalar_one() == 0
    assert service.get(services, old) == view
    assert service.events(services, old) == []
    assert sweeps.run_audit(services) == []
    keeping.database.close()


def test_many_are_deleted_in_batches_with_the_reports_of_pictures_that_are_gone(
    services: Services, keeping: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_JOBS", 2)
    monkeypatch.setattr(history, "_BATCHES", 2)
    old = [cancelled(services) for _ in range(5)]
    with services.database.writing() as session:
        session.execute(sa.update(Job).where(col(Job.id) == old[0]).values(thinned_at=utcnow()))
    assert [history.trim(keeping) for _ in range(3)] == [4, 1, 0]
    assert [counts(services, one) for one in old] == [(0, 0, 0), *[(0, 0, 5)] * 4]
    keeping.database.close()
