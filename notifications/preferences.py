"""What e-mails an owner wants: the address, the events, and the number of credits that counts as low."""

import re
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.clock import utcnow
from core.errors import SpecInvalid
from notifications.tables import PREFERENCES
from notifications.webhook_payload import EVENTS as JOB_EVENTS
from notifications.webhook_payload import PROCESSING

LOW = "credits.low"
EVENTS = (*JOB_EVENTS, LOW)
DEFAULT = tuple(event for event in EVENTS if event != PROCESSING)
MOST_CREDITS = 2**53  # the largest whole number that all JSON readers keep
# One plain address: nothing that a mail server could read as more than that.
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?=.{1,250}$)[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


@dataclass(frozen=True)
class Preferences:
    """The e-mails that an owner wants. One is sent when fewer than `low_credits` are available, and another only after
    there were more again."""

    email: str | None = None
    events: tuple[str, ...] = DEFAULT
    low_credits: int | None = None
    low_told_at: datetime | None = None

    def wants(self, event: str) -> bool:
        """Whether an e-mail is sent about this event."""
        return self.email is not None and event in self.events

    def check(self) -> None:
        """Raises SpecInvalid with all faults."""
        faults = {}
        if self.email is not None and not _ADDRESS.fullmatch(self.email):
            faults["email"] = "must be one plain e-mail address"
        if unknown := [event for event in self.events if event not in EVENTS]:
            faults["events"] = f"unknown event {ascii(unknown[0])[:60]}; must be among {', '.join(EVENTS)}"
        if self.low_credits is not None and not 0 <= self.low_credits <= MOST_CREDITS:
            faults["low_credits"] = f"must be from 0 to {MOST_CREDITS}"
        if faults:
            raise SpecInvalid.of(faults)


_COLUMNS = (PREFERENCES.c[name] for name in Preferences.__dataclass_fields__)
_OF_OWNER = sa.select(*_COLUMNS).where(PREFERENCES.c.owner_id == sa.bindparam("owner"))


def get(session: Session, owner_id: str) -> Preferences:
    """An owner's preferences. Without any, no e-mail is sent."""
    row = session.execute(_OF_OWNER, {"owner": owner_id}).one_or_none()
    if row is None:
        return Preferences()
    return Preferences(row.email, tuple(row.events), row.low_credits, row.low_told_at)


def save(session: Session, owner_id: str, wanted: Preferences) -> None:
    """Replace an owner's preferences. Raises SpecInvalid."""
    wanted.check()
    values = {
        "email": wanted.email,
        "events": list(wanted.events),
        "low_credits": wanted.low_credits,
        "low_told_at": wanted.low_told_at,
        "updated_at": utcnow(),
    }
    mine = PREFERENCES.c.owner_id == owner_id
    changed = sa.update(PREFERENCES).where(mine).values(**values).returning(PREFERENCES.c.owner_id)
    if session.execute(changed).scalar() is None:
        session.execute(sa.insert(PREFERENCES).values(owner_id=owner_id, **values))


def mark_low(session: Session, owner_id: str, told_at: datetime | None) -> None:
    """Record when the owner was notified of low credits; None once there are enough again."""
    mine = PREFERENCES.c.owner_id == owner_id
    session.execute(sa.update(PREFERENCES).where(mine).values(low_told_at=told_at))
