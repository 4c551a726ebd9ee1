"""Owners' credits: grant, refund, balance, holds, entries."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlmodel import col, select

from core.csv_lines import csv_line
from core.errors import NotFound, SpecInvalid
from core.ids import new_id
from credits import ledger
from jobs.notices import notices
from jobs.owners import audit_log
from jobs.owners.unusable_names import normal_name
from jobs.services import Services
from jobs.view import Time, View
from storage.tables.drawings import DrawingRow
from storage.tables.jobs import Job

_CSV_PAGE = 500


class HoldView(View):
    """Credits that are reserved for a training."""

    training_id: str
    amount: int
    expires_at: Time


class EntryView(View):
    """One movement of an owner's credits."""

    seq: int
    kind: str
    amount: int
    training_id: str | None
    created_at: Time
    change: int  # of the credits that are available
    available: int  # after it
    held: int | None  # the credits of the hold that it is about


def grant(services: Services, owner_id: str, amount: int, key: str | None = None) -> ledger.Balance:
    """Grant credits to an owner; the same key grants them once.

    Raises SpecInvalid for an amount below 1, and for a name that no owner can have.
    """
    owner_id = normal_name(owner_id)
    if amount < 1:
        raise SpecInvalid.of({"amount": "must be at least 1 credit"})
    with services.database.writing() as session:
        ledger.grant(session, owner_id, amount, key=key or new_id("grant"))
        audit_log.record(session, "credits.granted", owner_id=owner_id, amount=amount, key=key)
        notices.check_low_credits(session, owner_id)
        return ledger.balance(session, owner_id)


def refund(services: Services, job_id: str, amount: int, key: str | None = None) -> tuple[str, ledger.Balance]:
    """Refund credits that a job was charged; the same key refunds them once. Returns the owner and the new balance.

    Raises NotFound, SpecInvalid for an amount below 1, IllegalMove for more than the job was charged.
    """
    with services.database.writing() as session:
        hold = ledger.hold_of(session, job_id)
        if hold is None:
            raise NotFound(f"there is no job {job_id}")
        ledger.refund(session, hold.id, amount, key=key or new_id("refund"))
        audit_log.record(session, "credits.refunded", job_id=job_id, owner_id=hold.owner_id, amount=amount, key=key)
        notices.check_low_credits(session, hold.owner_id)
        return hold.owner_id, ledger.balance(session, hold.owner_id)


def balance(services: Services, owner_id: str) -> ledger.Balance:
    with services.database.reading() as session:
        return ledger.balance(session, owner_id)


def holds(services: Services, owner_id: str) -> list[HoldView]:
    """The live holds of an owner, newest first."""
    with services.database.reading() as session:
        return [
            HoldView(training_id=hold.training_id, amount=hold.amount, expires_at=hold.expires_at)
            for hold in ledger.live_holds(session, owner_id)
        ]


def statement(services: Services, owner_id: str, limit: int = 50, before_seq: int | None = None) -> list[EntryView]:
    """The newest entries of an owner's account; with `before_seq` only older ones."""
    with services.database.reading() as session:
        return [
            EntryView(
                seq=line.entry.seq,
                kind=line.entry.kind,
                amount=line.entry.amount,
                training_id=line.entry.training_id,
                created_at=line.entry.created_at,
                change=line.change,
                available=line.available,
                held=line.held,
            )
            for line in ledger.lines(session, owner_id, limit, before_seq)
        ]


def subjects_of(services: Services, owner_id: str, ids: Iterable[str]) -> dict[str, str]:
    """The subjects of an owner's trainings and drawings, by their ids. Deleted ones are left out."""
    wanted = set(ids)
    of_drawings = (
        select(DrawingRow.id, Job.subject_id)
        .join(Job, col(Job.id) == col(DrawingRow.job_id))
        .where(DrawingRow.owner_id == owner_id, col(DrawingRow.id).in_(wanted))
    )
    of_jobs = select(Job.id, Job.subject_id).where(Job.owner_id == owner_id, col(Job.id).in_(wanted))
    with services.database.reading() as session:
        return dict(session.exec(of_jobs).all()) | dict(session.exec(of_drawings).all())


def csv_lines(services: Services, owner_id: str) -> Iterator[str]:
    """All entries of an owner's account as lines of a CSV file, newest first."""
    yield csv_line("no", "at", "kind", "change", "available", "amount", "training", "subject")
    before: int | None = None
    while entries := statement(services, owner_id, _CSV_PAGE, before):
        subjects = subjects_of(services, owner_id, filter(None, (entry.training_id for entry in entries)))
        for entry in entries:
            yield csv_line(
                entry.seq, entry.created_at.isoformat(), entry.kind, entry.change, entry.available, entry.amount,
                entry.training_id or "", subjects.get(entry.training_id or "", ""),
            )  # fmt: skip
        before = entries[-1].seq


@dataclass(frozen=True)
class AccountPage:
    """An owner's balance and live holds, and one page of entries. `next_seq` is the `before_seq` of the next page."""

    balance: ledger.Balance
    holds: list[HoldView]
    entries: list[EntryView]
    next_seq: int | None


def account_page(services: Services, owner_id: str, limit: int, before_seq: int | None = None) -> AccountPage:
    """The account of an owner with at most `limit` entries older than `before_seq`, newest first."""
    entries = statement(services, owner_id, limit, before_seq)
    is_last = len(entries) < limit or entries[-1].seq <= 1
    return AccountPage(
        balance(services, owner_id), holds(services, owner_id), entries, None if is_last else entries[-1].seq
    )


def totals(services: Services) -> ledger.Balance:
    """The credits of all owners together."""
    with services.database.reading() as session:
        return ledger.totals(session)
