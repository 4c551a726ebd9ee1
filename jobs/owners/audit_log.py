"""The audit log: who did what to which job, owner, credits or limit. Entries are never changed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from core import actor
from core.clock import utcnow
from core.csv_lines import csv_line
from core.ids import new_id
from jobs.services import Services
from jobs.view import Time, View
from storage.tables.audit import AuditEntry
from storage.tables.jobs import Job

# Every action that is recorded.
ACTIONS = (
    "admission.paused", "admission.resumed", "checkpoint.delivered", "credits.expired", "credits.granted",
    "credits.refunded", "deletion.requested", "deletion.undone", "drawing.accepted", "drawing.cancelled",
    "drawing.failed", "drawing.ready", "job.accepted", "job.approved", "job.cancelled", "job.failed", "job.held",
    "job.ready", "job.refused", "job.reviewed", "job.sent_again", "job.thinned", "limit.changed", "lora.sent",
    "notice.redelivered", "owner.renamed", "person.signed_in", "picture.accepted", "picture.refused", "pod.closed",
    "pod.deleted", "pod.rented", "preferences.changed", "receiver.enabled", "session.begun", "session.ended",
    "token.created", "token.revoked", "weight.changed", "worker.drained", "worker.undrained",
)  # fmt: skip
_CSV_PAGE = 500
_INSERT = sa.insert(AuditEntry.__table__)  # type: ignore[attr-defined]


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
    entry = {
        "id": new_id("audit"), "at": utcnow(), "actor": now.kind, "actor_id": now.id, "action": action,
        "job_id": job_id, "owner_id": owner_id, "data": data,
    }  # fmt: skip
    session.execute(_INSERT, entry)


@dataclass(frozen=True)
class AuditFilter:
    """Which entries: those that fulfil all that is given.

    actor: the kind of actor, or the beginning of its id; subject_id: of the entry's job; since, until: from this time,
    and before that.
    """

    job_id: str | None = None
    owner_id: str | None = None
    subject_id: str | None = None
    actor: str | None = None
    action: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> Iterator[sa.ColumnElement[bool]]:
        for column, value in (
            (AuditEntry.job_id, self.job_id), (AuditEntry.owner_id, self.owner_id), (AuditEntry.action, self.action),
        ):  # fmt: skip
            if value is not None:
                yield col(column) == value
        if self.subject_id is not None:
            yield col(AuditEntry.job_id).in_(select(Job.id).where(Job.subject_id == self.subject_id))
        if self.actor is not None:
            begins = col(AuditEntry.actor_id).istartswith(self.actor, autoescape=True)
            yield sa.or_(col(AuditEntry.actor) == self.actor, begins)
        if self.since is not None:
            yield col(AuditEntry.at) >= self.since
        if self.until is not None:
            yield col(AuditEntry.at) < self.until


def find(services: Services, wanted: AuditFilter, limit: int = 100, before: str | None = None) -> list[AuditView]:
    """Entries, newest first. `before`: the id of the entry after which to go on; none of an unknown one."""
    query = select(AuditEntry).where(*wanted.conditions())
    if before is not None:
        last = select(AuditEntry.at, AuditEntry.id).where(AuditEntry.id == before)
        query = query.where(sa.tuple_(col(AuditEntry.at), col(AuditEntry.id)) < last.scalar_subquery())
    query = query.order_by(col(AuditEntry.at).desc(), col(AuditEntry.id).desc()).limit(limit)
    with services.database.reading() as session:
        return [
            AuditView.model_validate({name: getattr(entry, name) for name in AuditView.model_fields})
            for entry in session.exec(query)
        ]


def list_entries(
    services: Services, *, job_id: str | None = None, owner_id: str | None = None, action: str | None = None,
    limit: int = 100,
) -> list[AuditView]:  # fmt: skip
    """Entries, newest first, that fulfil all that is given."""
    return find(services, AuditFilter(job_id=job_id, owner_id=owner_id, action=action), limit)


def csv_lines(services: Services, wanted: AuditFilter) -> Iterator[str]:
    """All entries as lines of a CSV file, newest first."""
    yield csv_line("at", "actor", "actor_id", "action", "owner", "training", "data")
    before: str | None = None
    while entries := find(services, wanted, _CSV_PAGE, before):
        for one in entries:
            yield csv_line(
                one.at.isoformat(), one.actor, one.actor_id, one.action, one.owner_id or "", one.job_id or "",
                json.dumps(one.data, ensure_ascii=False, sort_keys=True),
            )  # fmt: skip
        before = entries[-1].id
