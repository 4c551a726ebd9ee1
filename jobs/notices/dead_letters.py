"""For operators: undelivered notices and disabled receivers."""

from dataclasses import dataclass

from sqlmodel import Session

from core.errors import IllegalMove, NotFound
from jobs.owners import audit_log
from jobs.services import Services
from jobs.view import Time, View
from notifications import outbox, receivers
from notifications.messages import CONFIRMATION, EXTERNAL, DeadLetter
from notifications.webhook_payload import PROCESSING

_OPEN_FIRST = "enable it first: imprint receivers enable OWNER URL"


@dataclass(frozen=True)
class Redelivery:
    """The ids of the notices that are due again; how many stay dead because their receiver is disabled, or because a
    later notice makes them needless.
    """

    again: list[str]
    disabled: int
    needless: int


class DeadLetterView(View):
    """A notice that was given up. `receiver` is the scheme and host of its address: the rest may hold a secret."""

    id: str
    job_id: str | None
    owner_id: str | None
    receiver: str
    event: str
    attempts: int
    reason: str
    at: Time


class DisabledReceiverView(View):
    """A receiver that gets nothing more. `receiver` is the scheme and host of its address."""

    owner_id: str
    receiver: str
    reason: str
    at: Time


def list_dead_letters(services: Services, limit: int = 100) -> list[DeadLetterView]:
    """The newest dead letters."""
    with services.database.reading() as session:
        letters = outbox.dead_letters(session, limit)
    return [
        DeadLetterView(
            id=letter.id,
            job_id=letter.job_id,
            owner_id=letter.owner_id,
            receiver=receivers.shown(letter.destination or ""),
            event=letter.topic,
            attempts=letter.attempts,
            reason=letter.reason,
            at=letter.dead_at,
        )
        for letter in letters
    ]


def redeliver(services: Services, message_id: str) -> Redelivery:
    """Make one notice due again, whatever its state. Raises NotFound, or IllegalMove for a disabled receiver."""
    with services.database.writing() as session:
        notice = outbox.get(session, message_id)
        if notice is None or notice.kind not in (CONFIRMATION, *EXTERNAL):
            raise NotFound(f"there is no notice {message_id}")
        if receivers.is_disabled(session, notice.owner_id, notice.destination):
            where = receivers.shown(notice.destination or "")
            raise IllegalMove(f"{where} is disabled for {notice.owner_id}; {_OPEN_FIRST}")
        if not outbox.redeliver(session, message_id):
            raise IllegalMove(f"{message_id} is being sent at this moment")
        _log(session, message_id, notice.job_id, notice.owner_id)
    return Redelivery([message_id], 0, 0)


def redeliver_dead(services: Services, *, job_id: str | None = None, receiver: str | None = None) -> Redelivery:
    """Make dead letters due again, oldest first: all, or those of one job or to one receiver.

    A `processing` notice that is followed by a later one stays dead, and so does a notice to a disabled receiver.
    """
    again, disabled, needless = [], 0, 0
    with services.database.writing() as session:
        for letter in reversed(outbox.dead_letters(session, None)):
            if not _is_wanted(letter, job_id, receiver):
                continue
            if receivers.is_disabled(session, letter.owner_id, letter.destination):
                disabled += 1
            elif letter.topic == PROCESSING and outbox.is_superseded(session, letter):
                needless += 1
            elif outbox.redeliver(session, letter.id):
                again.append(letter.id)
                _log(session, letter.id, letter.job_id, letter.owner_id)
    return Redelivery(again, disabled, needless)


def _log(session: Session, message_id: str, job_id: str | None, owner_id: str | None) -> None:
    audit_log.record(session, "notice.redelivered", job_id=job_id, owner_id=owner_id, message_id=message_id)


def _is_wanted(letter: DeadLetter, job_id: str | None, receiver: str | None) -> bool:
    if receiver is not None and not receivers.is_meant(letter.destination or "", receiver):
        return False
    return job_id is None or letter.job_id == job_id


def disabled_receivers(services: Services) -> list[DisabledReceiverView]:
    """The receivers that were disabled after they answered 410."""
    with services.database.reading() as session:
        found = receivers.disabled(session)
    return [
        DisabledReceiverView(
            owner_id=one.owner_id,
            receiver=receivers.shown(one.destination),
            reason=one.reason,
            at=one.disabled_at,
        )
        for one in found
    ]


def enable_receiver(services: Services, owner_id: str, url: str) -> int:
    """Enable an owner's receiver, named by its address or by scheme and host. Returns how many. Raises NotFound."""
    with services.database.writing() as session:
        enabled = receivers.enable(session, owner_id, url)
        if not enabled:
            raise NotFound(f"no receiver at {receivers.shown(url)} is disabled for {owner_id}")
        audit_log.record(session, "receiver.enabled", owner_id=owner_id, receivers=len(enabled))
    return len(enabled)
