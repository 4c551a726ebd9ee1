"""What requests, decisions and the sweep read does not grow with finished trainings, on both databases.

PostgreSQL counts the rows that it reads of each table, SQLite the instructions of its virtual machine.
"""

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session, SQLModel, col, select

from core.clock import utcnow
from jobs import service
from jobs.admission import decide, workers
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from jobs.requests import quotes
from jobs.services import Services
from storage.tables.jobs import Job, JobPicture, Status
from tests.contract.jobs import request, settings

pytestmark = pytest.mark.both_databases

__all__ = ["settings"]

FINISHED = 3_000
LARGE = ("training_job", "job_picture", "job_event", "outbox_message", "credit_entry", "credit_hold", "audit_entry")
# More than what any of them needs: a submit has five pictures, a decision a few jobs that wait.
MOST_ROWS, MOST_INSTRUCTIONS = 400, 25_000


@pytest.fixture
def services(settings: Any) -> Iterator[Services]:
    services = Services(settings)
    accounts.grant(services, "ada", 100_000)
    workers.beat(services, "train@one", ["train.sd15"], 2, "NVIDIA Old")
    workers.beat(services, "train@new", ["train.sd15"], 1, "NVIDIA New")  # has not trained anything
    first = service.submit(services, request(services)).job_id
    for _ in range(7):
        service.submit(services, request(services))
    _copy_finished(services, first)
    yield services
    services.database.close()


def _copy_finished(services: Services, job_id: str) -> None:
    """Copies of a job that ended ready, with its pictures: as many as a test can wait for."""
    ended = {"status": Status.READY, "seconds_per_step": 0.5, "device": "NVIDIA Old", "finished_at": utcnow()}
    ended |= {"admitted_at": utcnow(), "started_at": utcnow(), "trimmed_at": utcnow(), "thinned_at": utcnow()}
    with services.database.writing() as session:
        for kind, key, changed in ((Job, "id", ended), (JobPicture, "job_id", {})):
            _copy(session, kind, key, job_id, changed)
    with services.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("COMMIT" if services.database.is_sqlite else "SELECT 1")
        connection.exec_driver_sql("ANALYZE")
        connection.exec_driver_sql("BEGIN" if services.database.is_sqlite else "SELECT 1")


def _copy(session: Session, kind: type[SQLModel], key: str, job_id: str, changed: dict[str, Any]) -> None:
    table = SQLModel.metadata.tables[str(kind.__tablename__)]
    numbers = sa.select(sa.literal(1).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(sa.select(numbers.c.n + 1).where(numbers.c.n < FINISHED))
    end = sa.literal("x") + sa.cast(numbers.c.n, sa.String)
    values = [
        sa.literal(changed[column.name], column.type)
        if column.name in changed
        else (column + end if column.name == key else column)
        for column in table.c
    ]
    chosen = sa.select(*values).select_from(table.join(numbers, sa.true())).where(table.c[key] == job_id)
    session.connection().execute(sa.insert(table).from_select([column.name for column in table.c], chosen))


def _instructions(services: Services, work: Callable[[], object]) -> int:
    count = 0

    def tick() -> None:
        nonlocal count
        count += 100

    def watch(connection: sqlite3.Connection, *_: object) -> None:
        connection.set_progress_handler(tick, 100)

    services.database.close()  # the next connections are new, and watched
    sa.event.listen(services.database.engine, "connect", watch)
    work()
    sa.event.remove(services.database.engine, "connect", watch)
    services.database.close()
    return count


def _rows_read(services: Services, work: Callable[[], object]) -> int:
    before = _counted(services)
    work()
    return _counted(services) - before


def _counted(services: Services) -> int:
    """The rows that were read until now. A connection reports what it has read at its end."""
    services.database.close()
    engine = sa.create_engine(services.database.address, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with engine.connect() as connection:
        while connection.exec_driver_sql(others).scalar_one():
            pass
        read = sa.text(
            "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables WHERE relname = ANY(:names)"
        )
        return int(connection.execute(read, {"names": list(LARGE)}).scalar_one())


WORK: dict[str, Callable[[Services], object]] = {
    "submit": lambda services: service.submit(services, request(services)),
    "quote": lambda services: quotes.quote(services, request(services)),
    "status": lambda services: service.get(services, _newest(services)),
    "list": lambda services: service.jobs(services),
    "list of an owner": lambda services: service.jobs(services, owner_id="ada", active=True),
    "cancel": lambda services: service.cancel(services, _newest(services)),
    "decision": lambda services: _decide(services),
    "sweep": lambda services: (sweeps.repair_jobs(services), sweeps.admit_jobs(services)),
    "heartbeat": lambda services: workers.beat(services, "train@one", ["train.sd15"], 2, "NVIDIA Old"),
}


def _newest(services: Services) -> str:
    with services.database.reading() as session:
        return session.exec(select(Job.id).order_by(col(Job.created_at).desc(), col(Job.id).desc()).limit(1)).one()


def _decide(services: Services) -> None:
    with services.database.writing() as session:
        session.connection().execute(sa.text("UPDATE training_worker SET slots = slots + 1"))
        decide.may_have_room(session, "train.sd15")


def test_what_is_read_does_not_grow_with_finished_trainings(services: Services) -> None:
    on_sqlite = services.database.is_sqlite
    count, most = (_instructions, MOST_INSTRUCTIONS) if on_sqlite else (_rows_read, MOST_ROWS)
    read = {name: count(services, lambda work=work: work(services)) for name, work in WORK.items()}
    assert {name: amount for name, amount in read.items() if amount > most} == {}, read
