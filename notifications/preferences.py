"""How owners want to be told besides webhooks: an e-mail address, the events for it, and when credits are low."""

import json
import re
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.clock import utcnow
from core.errors import SpecInvalid
from notifications.tables import PREFERENCES
from notifications.webhooks import EVENTS as JOB_EVENTS
from notifications.webhooks import PROCESSING

LOW = "credits.low"
EVENTS = (*JOB_EVENTS, LOW)
DEFAULT = tuple(event for event in EVENTS if event != PROCESSING)
MOST_CREDITS = 2**53  # what JSON's readers can count to
# One plain address: nothing that a header or a mail server could take for more than that.
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?=.{1,250}$)[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


@dataclass(frozen=True)
class Preferences:
    """An owner's wishes. `low_credits`: told once when fewer are available, until it was more again."""

    email: str | None = None
    events: tuple[str, ...] = DEFAULT
    low_credits: int | None = None
    low_told_at: datetime | None = None

    def wants(self, event: str) -> bool:
        """Whether this event goes to the e-mail address."""
        return self.email is not None and event in self.events

    def check(self) -> None:
        """Raises SpecInvalid with every fault."""
        faults = {}
        if self.email is not None and not _ADDRESS.fullmatch(self.email):
            faults["email"] = "not one plain e-mail address"
        if unknown := [event for event in self.events if event not in EVENTS]:
            faults["events"] = f"unknown: {ascii(unknown[0])[:60]}; known are {', '.join(EVENTS)}"
        if self.low_credits is not None and not 0 <= self.low_credits <= MOST_CREDITS:
            faults["low_credits"] = f"from 0 to {MOST_CREDITS}"
        if faults:
            raise SpecInvalid.of(faults)


def get(session: Session, owner_id: str) -> Preferences:
    """An owner's wishes; of one who has said nothing, no e-mail at all."""
    columns = [PREFERENCES.c[name] for name in Preferences.__dataclass_fields__]
    row = session.execute(sa.select(*columns).where(PREFERENCES.c.owner_id == owner_id)).one_or_none()
    if row is None:
        return Preferences()
    return Preferences(row.email, tuple(json.loads(row.events)), row.low_credits, row.low_told_at)


def save(session: Session, owner_id: str, wishes: Preferences) -> None:
    """Write an owner's wishes over the older ones. Raises SpecInvalid."""
    wishes.check()
    values = {
        "email": wishes.email,
        "events": json.dumps(wishes.events),
        "low_credits": wishes.low_credits,
        "low_told_at": wishes.low_told_at,
        "updated_at": utcnow(),
    }
    mine = PREFERENCES.c.owner_id == owner_id
    changed = sa.update(PREFERENCES).where(mine).values(**values).returning(PREFERENCES.c.owner_id)
    if session.execute(changed).scalar() is None:
        session.execute(sa.insert(PREFERENCES).values(owner_id=owner_id, **values))


def mark_low(session: Session, owner_id: str, told_at: datetime | None) -> None:
    """Remember that the owner was told of low credits; None: that there were enough again."""
    mine = PREFERENCES.c.owner_id == owner_id
    session.execute(sa.update(PREFERENCES).where(mine).values(low_told_at=told_at))
