"""Notices that were given up, and receivers that want none: what an operator sees and may do."""

from dataclasses import dataclass
from typing import Any

from core.errors import IllegalMove, NotFound
from jobs.services import Services
from notifications import outbox, receivers, webhooks
from notifications.outbox import DeadLetter

_OPEN_FIRST = "enable it first: imprint receivers enable OWNER URL"


@dataclass(frozen=True)
class Redelivery:
    """Ids of the notices that are due again; how many stay dead since their receiver is disabled, or needless."""

    again: list[str]
    disabled: int
    needless: int


def dead(services: Services, limit: int = 100) -> list[dict[str, Any]]:
    """The newest dead letters, JSON-serialisable; of an address only scheme and host."""
    with services.database.reading() as session:
        letters = outbox.dead_letters(session, limit)
    return [
        {
            "id": letter.id,
            "job_id": letter.job_id,
            "owner_id": letter.owner_id,
            "receiver": receivers.shown(letter.destination or ""),
            "event": letter.topic,
            "attempts": letter.attempts,
            "reason": letter.reason,
            "at": letter.dead_at.isoformat(),
        }
        for letter in letters
    ]


def redeliver(services: Services, message_id: str) -> Redelivery:
    """Make one notice due again, sent, dead or waiting. Raises NotFound, or IllegalMove for a disabled receiver."""
    with services.database.writing() as session:
        notice = outbox.get(session, message_id)
        if notice is None or notice.kind not in outbox.EXTERNAL:
            raise NotFound(f"there is no notice {message_id}")
        if receivers.is_disabled(session, notice.owner_id, notice.destination):
            where = receivers.shown(notice.destination or "")
            raise IllegalMove(f"{where} is disabled for {notice.owner_id}; {_OPEN_FIRST}")
        if not outbox.redeliver(session, message_id):
            raise IllegalMove(f"{message_id} is on its way at this moment")
    return Redelivery([message_id], 0, 0)


def redeliver_dead(services: Services, *, job_id: str | None = None, receiver: str | None = None) -> Redelivery:
    """Make all dead letters due again, or those of one job, or to one receiver, oldest first.

    A `processing` whose job has told a later event stays dead, and so does what goes to a disabled receiver.
    """
    again, disabled, needless = [], 0, 0
    with services.database.writing() as session:
        for letter in reversed(outbox.dead_letters(session, None)):
            if not _is_wanted(letter, job_id, receiver):
                continue
            if receivers.is_disabled(session, letter.owner_id, letter.destination):
                disabled += 1
            elif letter.topic == webhooks.PROCESSING and outbox.is_superseded(session, letter):
                needless += 1
            elif outbox.redeliver(session, letter.id):
                again.append(letter.id)
    return Redelivery(again, disabled, needless)


def _is_wanted(letter: DeadLetter, job_id: str | None, receiver: str | None) -> bool:
    if receiver is not None and not receivers.is_meant(letter.destination or "", receiver):
        return False
    return job_id is None or letter.job_id == job_id


def disabled_receivers(services: Services) -> list[dict[str, Any]]:
    """Receivers that get nothing more, JSON-serialisable; of an address only scheme and host."""
    with services.database.reading() as session:
        found = receivers.disabled(session)
    return [
        {
            "owner_id": one.owner_id,
            "receiver": receivers.shown(one.destination),
            "reason": one.reason,
            "at": one.disabled_at.isoformat(),
        }
        for one in found
    ]


def enable_receiver(services: Services, owner_id: str, url: str) -> int:
    """Let an owner's receiver get notices again: all of its address, or scheme and host. Raises NotFound."""
    with services.database.writing() as session:
        enabled = receivers.enable(session, owner_id, url)
    if not enabled:
        raise NotFound(f"no receiver at {receivers.shown(url)} is disabled for {owner_id}")
    return len(enabled)
