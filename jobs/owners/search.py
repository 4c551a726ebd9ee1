"""For operators: find any job, drawing, owner or picture, and see all that is known of one job or owner."""

from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlmodel import Session, SQLModel, col, func, select

from core.errors import NotFound
from credits import ledger
from jobs import history, service
from jobs.owners import accounts, audit_log, limits, tokens
from jobs.owners.accounts import EntryView
from jobs.owners.audit_log import AuditView
from jobs.owners.limits import LimitView
from jobs.owners.tokens import Token
from jobs.remote.run_views import RemoteRunView, list_runs
from jobs.services import Services
from jobs.view import JobView
from notifications import outbox
from notifications.messages import DeadLetter
from storage.owners import names_in_use
from storage.tables.drawings import DrawingRow
from storage.tables.jobs import Job
from storage.tables.pictures import StoredPicture

MAX_FOUND = 30  # of each kind
_NAMING = ("credit_account", "api_token", "subject", "training_job")  # the tables that name all owners
_Row = TypeVar("_Row", bound=SQLModel)


@dataclass(frozen=True)
class Found:
    """What a text was found in, newest first."""

    jobs: list[JobView]
    owners: list[str]
    pictures: list[StoredPicture]
    drawings: list[DrawingRow]

    @property
    def is_empty(self) -> bool:
        return not (self.jobs or self.owners or self.pictures or self.drawings)


def search(services: Services, text: str) -> Found:
    """Jobs, drawings and pictures whose id begins with `text`, or that belong to such an owner or subject, and owners
    with `text` in their name. Upper and lower case are the same.
    """
    text = text.strip()
    if not text:
        return Found([], [], [], [])
    with services.database.reading() as session:
        names = names_in_use(session.connection(), _NAMING)
        owners = sorted(name for name in names if text.casefold() in name.casefold())[:MAX_FOUND]
        jobs = _rows(session, Job, text, col(Job.owner_id), col(Job.subject_id), col(Job.model_id))
        pictures = _rows(session, StoredPicture, text, col(StoredPicture.sha256), col(StoredPicture.name))
        drawings = _rows(session, DrawingRow, text)
        ids = [job.id for job in jobs]
    return Found(service.jobs(services, ids=ids, limit=MAX_FOUND), owners, pictures, drawings)


def _rows(session: Session, table: type[_Row], text: str, *columns: Any) -> list[_Row]:
    identity = table.id  # type: ignore[attr-defined]
    query = select(table).where(_matches(identity, text, *columns)).order_by(identity.desc())
    return list(session.exec(query.limit(MAX_FOUND)).all())


def _matches(identity: Any, text: str, *columns: Any) -> sa.ColumnElement[bool]:
    begins = [column.istartswith(text, autoescape=True) for column in (identity, *columns)]
    return sa.or_(*begins)


# ---- one job, one owner -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobHistory:
    """All that is known of one job."""

    job: JobView
    lines: list[history.EventLine]
    log: list[AuditView]
    runs: list[RemoteRunView]
    letters: list[DeadLetter]


def job_history(services: Services, job_id: str) -> JobHistory:
    """Raises NotFound."""
    view = service.get(services, job_id)
    with services.database.reading() as session:
        letters = outbox.dead_letters(session, 200, job_id=job_id)
    return JobHistory(
        view,
        history.describe(service.events(services, job_id)),
        audit_log.list_entries(services, job_id=job_id),
        list_runs(services, job_id),
        letters,
    )


@dataclass(frozen=True)
class OwnerHistory:
    """All that is known of one owner."""

    owner_id: str
    balance: ledger.Balance
    entries: list[EntryView]
    jobs: list[JobView]
    tokens: list[Token]
    limits: list[LimitView]
    log: list[AuditView]
    pictures: int


def owner_history(services: Services, owner_id: str) -> OwnerHistory:
    """Raises NotFound for a name that nothing belongs to."""
    with services.database.reading() as session:
        if owner_id not in names_in_use(session.connection(), _NAMING):
            raise NotFound(f"nothing belongs to an owner called {owner_id!a}")
        pictures = session.exec(select(func.count()).where(col(StoredPicture.owner_id) == owner_id)).one()
    return OwnerHistory(
        owner_id,
        accounts.balance(services, owner_id),
        accounts.statement(services, owner_id, 20),
        service.jobs(services, owner_id=owner_id, limit=20),
        tokens.list_tokens(services, owner_id),
        list(limits.list_limits(services, owner_id)),
        audit_log.list_entries(services, owner_id=owner_id, limit=50),
        pictures,
    )
