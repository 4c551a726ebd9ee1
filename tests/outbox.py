"""What waits in the outbox, without claiming it."""

from collections.abc import Iterable
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from notifications.due import parameters, ready
from notifications.messages import COLUMNS, Kind, Message
from notifications.tables import MESSAGE


def due(session: Session, now: datetime, kinds: Iterable[Kind], limit: int = 100) -> list[Message]:
    """The messages that a relay would claim, in their order."""
    statement = sa.select(*COLUMNS).where(MESSAGE.c.id.in_(ready()))
    rows = session.execute(
        statement.order_by(MESSAGE.c.due_at, MESSAGE.c.job_id, MESSAGE.c.sequence), parameters(now, kinds, limit)
    )
    return [Message.from_row(row) for row in rows]
