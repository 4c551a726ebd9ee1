"""Limits of what an owner or a token may use: checked in the transaction that would exceed them.

Jobs that run are limited by admission: more are accepted, and wait.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from core.clock import utcnow
from core.errors import LimitReached, NotFound, SpecInvalid
from core.ids import new_id
from core.settings import Settings
from credits.tables import CreditHold
from jobs.admission import decide
from jobs.admission.queues import every_queue, is_waiting
from jobs.owners import audit_log
from jobs.owners.unusable_names import normal_name
from jobs.services import Services
from jobs.view import Time, View
from storage.database import lock_name
from storage.tables.access import ApiToken
from storage.tables.audit import UsageLimit
from storage.tables.jobs import ACTIVE, Job, Stage
from storage.tables.pictures import StoredPicture

OF_JOBS = ("running_jobs", "waiting_jobs", "jobs_per_day", "credits_per_day")
OF_FILES = ("pictures", "bytes_stored")
NAMES = (*OF_JOBS, *OF_FILES)
_DAY = timedelta(days=1)
_MOST = 2**53


class LimitView(View):
    """A limit and what is used of it. `frees_at`: when the oldest of it no longer counts; None if no time is known."""

    name: str
    value: int | None
    used: int
    frees_at: Time | None


def check_job(session: Session, settings: Settings, owner_id: str, token_id: str | None, price: int) -> None:
    """Raise LimitReached if another job of this price would exceed a limit. Call it with the owner locked."""
    for whose, condition, limits in _limits_of(session, settings, owner_id, token_id):
        for name in ("waiting_jobs", "jobs_per_day", "credits_per_day"):
            value = limits.get(name)
            if value is None:
                continue
            adds = price if name == "credits_per_day" else 1
            used, frees_at = _used(session, name, condition, value - adds)
            if used + adds > value:
                raise _reached(name, value, used, frees_at, whose)


def check_picture(session: Session, settings: Settings, owner_id: str, size_bytes: int) -> None:
    """Raise LimitReached if another picture would exceed a limit. Call it with the owner locked."""
    limits = _of_owner(session, settings, owner_id)
    for name, adds in (("pictures", 1), ("bytes_stored", size_bytes)):
        value = limits.get(name)
        if value is not None:
            used, _ = _used(session, name, col(Job.owner_id) == owner_id, value, owner_id)
            if used + adds > value:
                raise _reached(name, value, used, None)


def _limits_of(
    session: Session, settings: Settings, owner_id: str, token_id: str | None
) -> list[tuple[str, sa.ColumnElement[bool], dict[str, int]]]:
    """The limits of the owner and of the token, each with the condition of its jobs. A token with limits is locked."""
    found = [("owner", col(Job.owner_id) == owner_id, _of_owner(session, settings, owner_id))]
    if token_id is not None:
        limits = _stored(session, col(UsageLimit.token_id) == token_id)
        if limits:
            lock_name(session, f"token {token_id}")
            found.append(("token", col(Job.token_id) == token_id, limits))
    return found


def _of_owner(session: Session, settings: Settings, owner_id: str) -> dict[str, int]:
    given = {name: getattr(settings, f"limit_{name}") for name in NAMES}
    own = _stored(session, col(UsageLimit.owner_id) == owner_id)
    return {name: value for name, value in (given | own).items() if value is not None}


def _stored(session: Session, whose: sa.ColumnElement[bool]) -> dict[str, int]:
    return dict(session.exec(select(UsageLimit.name, UsageLimit.value).where(whose)).all())


def _used(
    session: Session, name: str, whose: sa.ColumnElement[bool], most: int, owner_id: str | None = None
) -> tuple[int, datetime | None]:
    """What is used of a limit, and when enough has gone for `most` to be left."""
    if name == "pictures":
        return _count(session, sa.select(func.count()).where(*_kept(owner_id))), None
    if name == "bytes_stored":
        of_loras = sa.select(func.coalesce(func.sum(col(Job.lora_bytes)), 0))
        of_loras = of_loras.where(whose, col(Job.lora_key).is_not(None))
        of_pictures = sa.select(func.coalesce(func.sum(col(StoredPicture.size_bytes)), 0)).where(*_kept(owner_id))
        return _count(session, of_loras) + _count(session, of_pictures), None
    if name == "waiting_jobs":
        return _count(session, sa.select(func.count()).select_from(Job).where(whose, is_waiting())), None
    if name == "running_jobs":
        early = col(Job.stage).in_((Stage.PREPROCESS, Stage.CAPTION, Stage.DATASET, Stage.TRAIN))
        running = (whose, col(Job.status).in_(ACTIVE), col(Job.admitted_at).is_not(None), early)
        return _count(session, sa.select(func.count()).select_from(Job).where(*running)), None
    since = utcnow() - _DAY
    amount = sa.literal(1) if name == "jobs_per_day" else _cost()
    query = sa.select(col(Job.created_at), amount).where(whose, col(Job.created_at) > since)
    if name == "credits_per_day":
        query = query.join(CreditHold, col(CreditHold.training_id) == col(Job.id))
    rows = session.connection().execute(query.order_by(col(Job.created_at))).all()
    used = left = sum(amount for _, amount in rows)
    for created_at, gone in rows:
        if left <= most:
            break
        left -= gone
        if left <= most:
            return used, created_at + _DAY
    return used, None


def _cost() -> sa.ColumnElement[int]:
    """What a job holds, or was charged."""
    return sa.case((col(CreditHold.state) == "held", col(CreditHold.amount)), else_=col(CreditHold.settled))


def _kept(owner_id: str | None) -> tuple[sa.ColumnElement[bool], ...]:
    return col(StoredPicture.owner_id) == owner_id, col(StoredPicture.removed_at).is_(None)


def _count(session: Session, query: "sa.Select[Any]") -> int:
    return int(session.connection().execute(query).scalar_one())


def _reached(name: str, value: int, used: int, frees_at: datetime | None, whose: str = "owner") -> LimitReached:
    """The error, which says when it frees."""
    how = {
        "waiting_jobs": "when a waiting job starts or is cancelled",
        "pictures": "when pictures are deleted",
        "bytes_stored": "when pictures or trainings are deleted",
    }
    when = f"at {frees_at.isoformat(timespec='seconds')}" if frees_at else how.get(name, "when it is raised")
    details = {"limit": name, "of": whose, "value": value, "used": used}
    return LimitReached(
        f"this {whose} has {used} of at most {value} ({name.replace('_', ' ')}); it frees {when}",
        details | {"frees_at": frees_at.isoformat() if frees_at else None},
    )


# ---- for operators and owners ---------------------------------------------------------------------------------------


def change(
    services: Services, name: str, value: int | None, *, owner_id: str | None = None, token_id: str | None = None
) -> None:
    """Set a limit of an owner or of a token; None: the setting again. Raises SpecInvalid, and NotFound for a token."""
    _store(services, name, value, owner_id, token_id)
    decide.open_places(services.database, every_queue())


def _store(services: Services, name: str, value: int | None, owner_id: str | None, token_id: str | None) -> None:
    names = NAMES if owner_id is not None else OF_JOBS
    if (owner_id is None) == (token_id is None):
        raise SpecInvalid.of({"owner_id": "give either an owner or a token"})
    if name not in names:
        raise SpecInvalid.of({"name": f"must be one of {', '.join(names)}"})
    if value is not None and not 0 <= value <= _MOST:
        raise SpecInvalid.of({"value": f"must be between 0 and {_MOST}"})
    owner_id = None if owner_id is None else normal_name(owner_id)
    with services.database.writing() as session:
        if token_id is not None and session.get(ApiToken, token_id) is None:
            raise NotFound(f"there is no token {token_id}")
        lock_name(session, f"limit {owner_id} {token_id}")
        whose = (col(UsageLimit.owner_id) == owner_id, col(UsageLimit.token_id) == token_id)
        session.connection().execute(
            sa.delete(UsageLimit).where(whose[0] if token_id is None else whose[1], col(UsageLimit.name) == name)
        )
        if value is not None:
            session.add(UsageLimit(id=new_id("limit"), owner_id=owner_id, token_id=token_id, name=name, value=value))
        about = {"token_id": token_id} if token_id else {}
        audit_log.record(session, "limit.changed", owner_id=owner_id, name=name, value=value, **about)


def change_all(services: Services, owner_id: str, values: Mapping[str, int | None]) -> None:
    """Set those of an owner's own limits that differ from `values`; None: the setting again. Raises as `change`."""
    own = own_limits(services, owner_id)
    changed = {name: value for name, value in values.items() if own.get(name) != value}
    for name, value in changed.items():
        _store(services, name, value, owner_id, None)
    if changed:
        decide.open_places(services.database, every_queue())


def own_limits(services: Services, owner_id: str) -> dict[str, int]:
    """The limits that were set for this owner, without those of the settings."""
    with services.database.reading() as session:
        return _stored(session, col(UsageLimit.owner_id) == owner_id)


def list_limits(services: Services, owner_id: str) -> Sequence[LimitView]:
    """The limits of an owner, with what is used of each."""
    with services.database.reading() as session:
        limits = _of_owner(session, services.settings, owner_id)
        found = []
        for name in NAMES:
            value = limits.get(name)
            whose = col(Job.owner_id) == owner_id
            used, frees_at = _used(session, name, whose, (value or 1) - 1, owner_id)
            found.append(LimitView(name=name, value=value, used=used, frees_at=frees_at if value is not None else None))
        return found
