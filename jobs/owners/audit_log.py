"""The audit log: who did what to which job, owner, credits or limit. Entries are never changed."""

from datetime import datetime
from typing import Any

from sqlmodel import Session, col, select

from core import actor
from core.clock import utcnow
from core.ids import new_id
from jobs.services import Services
from jobs.view import Time, View
from storage.tables.audit import AuditEntry


class AuditView(View):
    """One entry. `actor`: `service`, `token`, `person`, `command` or `sweep`; `actor_id`: which of them."""

    id: str
    at: Time
    actor: str
    actor_id: str
    action: str
    job_id: str | None
    owner_id: str | None
    data: dict[str, Any]


def record(
    session: Session, action: str, *, job_id: str | None = None, owner_id: str | None = None, **data: Any
) -> None:
    """Add an entry in the caller's transaction. `data` has no names of owners: only `owner_id` is changed when an owner
    is deleted.
    """
    now = actor.current()
    session.add(
        AuditEntry(
            id=new_id("audit"), at=utcnow(), actor=now.kind, actor_id=now.id, action=action, job_id=job_id,
            owner_id=owner_id, data=data,
        )
    )  # fmt: skip


def list_entries(
    services: Services, *, job_id: str | None = None, owner_id: str | None = None, action: str | None = None,
    before: datetime | None = None, limit: int = 100,
) -> list[AuditView]:  # fmt: skip
    """Entries, newest first, that fulfil all that is given."""
    query = select(AuditEntry).order_by(col(AuditEntry.at).desc(), col(AuditEntry.id).desc()).limit(limit)
    if job_id is not None:
        query = query.where(AuditEntry.job_id == job_id)
    if owner_id is not None:
        query = query.where(AuditEntry.owner_id == owner_id)
    if action is not None:
        query = query.where(AuditEntry.action == action)
    if before is not None:
        query = query.where(col(AuditEntry.at) < before)
    with services.database.reading() as session:
        return [
            AuditView.model_validate({name: getattr(entry, name) for name in AuditView.model_fields})
            for entry in session.exec(query)
        ]
