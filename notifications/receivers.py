"""Disabled receivers: addresses of one owner that answered 410, until an operator enables them again."""

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.orm import Session

from notifications.retries import Outcome, Verdict
from notifications.tables import RECEIVER

# A notice to a disabled receiver becomes a dead letter. It can be sent again when the receiver is enabled.
NOT_SENT = Outcome(Verdict.DEAD, "the receiver is disabled because it answered 410; see imprint receivers")


@dataclass(frozen=True)
class Receiver:
    """A disabled receiver. The path of `destination` may contain a secret: print `shown(destination)`."""

    owner_id: str
    destination: str
    reason: str
    disabled_at: datetime


def shown(destination: str) -> str:
    """Scheme and host of an address, for listings and logs."""
    parts = urlsplit(destination)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def is_meant(destination: str, url: str) -> bool:
    """Whether `url` means this destination: the whole address, or its scheme and host as in listings."""
    return url in (destination, shown(destination)) or url.rstrip("/") == shown(destination)


def disable(session: Session, owner_id: str, destination: str, reason: str, now: datetime) -> None:
    """Disable a receiver. The first reason is kept."""
    session.execute(
        sa.text(
            "INSERT INTO disabled_receiver (owner_id, destination, reason, disabled_at)"
            " VALUES (:owner_id, :destination, :reason, :now) ON CONFLICT (owner_id, destination) DO NOTHING"
        ).bindparams(sa.bindparam("now", type_=RECEIVER.c.disabled_at.type)),
        {"owner_id": owner_id, "destination": destination, "reason": reason, "now": now},
    )


def is_disabled(session: Session, owner_id: str | None, destination: str | None) -> bool:
    query = sa.select(sa.literal(1)).select_from(RECEIVER)
    query = query.where(RECEIVER.c.owner_id == owner_id, RECEIVER.c.destination == destination)
    return session.execute(query).scalar() is not None


def disabled(session: Session) -> list[Receiver]:
    """All disabled receivers, latest first."""
    columns = [RECEIVER.c[name] for name in Receiver.__dataclass_fields__]
    return [Receiver(*row) for row in session.execute(sa.select(*columns).order_by(RECEIVER.c.disabled_at.desc()))]


def enable(session: Session, owner_id: str, url: str) -> list[Receiver]:
    """Enable the receivers of an owner that `url` means, and return them."""
    found = [one for one in disabled(session) if one.owner_id == owner_id and is_meant(one.destination, url)]
    for one in found:
        gone = RECEIVER.c.owner_id == owner_id, RECEIVER.c.destination == one.destination
        session.execute(sa.delete(RECEIVER).where(*gone))
    return found
