"""Notices besides webhooks: owners' e-mails and their settings, low credits, operators' alerts."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

from sqlmodel import Session

from core.clock import utcnow
from core.errors import (
    AnswerRefused,
    FailureCode,
    ImageInvalid,
    MessageDeferred,
    NotFound,
    SpecInvalid,
    StoreUnavailable,
    Unreachable,
)
from credits import ledger
from jobs import keys
from jobs.owners import audit_log
from jobs.services import Services
from jobs.turns import sending_slot
from jobs.view import JobView
from notifications import channels, destinations, mail, outbox, preferences, retries, webhooks
from notifications.mail import MailFacts
from notifications.messages import DEFERRED, SUPERSEDED, Message
from notifications.preferences import LOW, Preferences
from notifications.retries import Outcome, Verdict
from notifications.webhook_payload import PROCESSING, Event
from storage.tables.jobs import ACTIVE
from training.data.thumbnail import thumbnail

_KEPT = ("email", "events", "low_credits")
_SAMPLE_PIXELS, _MAX_SAMPLE_BYTES = 512, 20_000_000
# Failures that are not caused by the request: operators are alerted.
_OURS = {
    FailureCode.BASE_MODEL_UNAVAILABLE, FailureCode.OUT_OF_MEMORY, FailureCode.LOSS_NOT_FINITE,
    FailureCode.BACKEND_UNREACHABLE, FailureCode.BACKEND_FAILED, FailureCode.WORKER_LOST, FailureCode.TIMEOUT,
    FailureCode.SCREENING_UNAVAILABLE,
    FailureCode.CAPTIONS_UNAVAILABLE,
    FailureCode.UPLOAD_FAILED, FailureCode.LORA_INVALID, FailureCode.INTERNAL,
}  # fmt: skip


# ---- preferences ----------------------------------------------------------------------------------------------


def get(services: Services, owner_id: str) -> Preferences:
    """An owner's e-mail settings."""
    with services.database.reading() as session:
        return preferences.get(session, owner_id)


def change(services: Services, owner_id: str, values: Mapping[str, Any]) -> Preferences:
    """Change some of an owner's e-mail settings; None clears one. Raises SpecInvalid with every fault."""
    faults = {name: f"unknown; the settings are {', '.join(_KEPT)}" for name in values if name not in _KEPT}
    if faults:
        raise SpecInvalid.of(faults)
    changed = dict(values)
    if "events" in changed:
        changed["events"] = preferences.DEFAULT if changed["events"] is None else tuple(changed["events"])
    with services.database.writing() as session:
        # After a new threshold an e-mail may be sent again.
        wanted = replace(preferences.get(session, owner_id), **changed, low_told_at=None)
        preferences.save(session, owner_id, wanted)
        audit_log.record(session, "preferences.changed", owner_id=owner_id, changed=sorted(changed))
        check_low_credits(session, owner_id)
    return wanted


# ---- written with a change ------------------------------------------------------------------------------------


def queue_owner_mail(session: Session, view: JobView, event: Event) -> None:
    """Queue an e-mail about a job if its owner wants one."""
    if not preferences.get(session, view.owner_id).wants(event):
        return
    if event != PROCESSING:
        outbox.drop_unsent(session, view.job_id, ["mail"], PROCESSING)
    _queue_mail(session, event, _facts(view))


def queue_not_started_mail(session: Session, owner_id: str, subject_id: str, code: str, why: str) -> None:
    """Queue an e-mail about a training that did not start automatically, if the owner wants one."""
    if preferences.get(session, owner_id).wants("training.not_started"):
        facts = MailFacts(owner_id, subject_id, code=code, reason=why)
        _queue_mail(session, "training.not_started", facts)


def check_low_credits(session: Session, owner_id: str) -> None:
    """After a movement of credits: queue an e-mail if few are left, and no other until there were enough again."""
    wanted = preferences.get(session, owner_id)
    if wanted.low_credits is None or not wanted.wants(LOW):
        return
    available = ledger.balance(session, owner_id).available
    is_low = available < wanted.low_credits
    if is_low and wanted.low_told_at is None:
        _queue_mail(session, LOW, MailFacts(owner_id, available=available, low=wanted.low_credits))
        preferences.mark_low(session, owner_id, utcnow())
    elif not is_low and wanted.low_told_at is not None:
        preferences.mark_low(session, owner_id, None)


def alert_failure(session: Session, job_id: str, owner_id: str, code: str | None) -> None:
    """Queue an alert about a failed job, unless the request caused the failure."""
    if code in _OURS:
        channels.alert(session, "failure", f"{job_id} of {_plain(owner_id)} failed: {code}")


def alert(services: Services, topic: str, text: str) -> None:
    """Queue an alert in a transaction of its own."""
    if services.settings.operator_channels:
        with services.database.writing() as session:
            channels.alert(session, topic, text)


def _facts(view: JobView) -> MailFacts:
    is_final = view.status not in ACTIVE
    return MailFacts(
        view.owner_id,
        view.subject_id,
        job_id=view.job_id,
        base_model=view.spec.base_model,
        trigger_word=view.spec.trigger_word,
        steps=f"{view.step} of {view.total_steps}",
        charged=f"{view.credits.charged} credits" if is_final else None,
        refunded=f"{view.credits.refunded} credits" if is_final else None,
        code=view.failure.code if view.failure else None,
        reason=view.failure.message if view.failure else None,
    )


def _queue_mail(session: Session, event: str, facts: MailFacts) -> None:
    # If the mail server is down, not every mail tries it again.
    due_at = destinations.postponed_until(session, mail.SERVER, utcnow() + retries.LONGEST_POSTPONEMENT)
    outbox.put(
        session, "mail", job_id=facts.job_id, owner_id=facts.owner, topic=event, destination=mail.SERVER,
        payload=asdict(facts),
        due_at=due_at,
    )  # fmt: skip


def _plain(name: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in name)[:80]


# ---- e-mail ---------------------------------------------------------------------------------------------------


def deliver_mail(services: Services, message_id: str) -> None:
    """Try once to send an e-mail; after a failure it is due again by the schedule of webhooks.

    A mail server that is down is tried once a minute: each attempt occupies a worker for some seconds. If the server
    works but defers one message, other messages are not affected. Raises RetryLater if the owner's other work takes its
    share of this worker.
    """
    now = utcnow()
    with services.database.reading() as session:
        message = outbox.find(session, message_id)
        if message is None:
            return
        wanted = preferences.get(session, message.owner_id or "")
    if wanted.email is None or not wanted.wants(message.topic):  # the settings were changed
        with services.database.writing() as session:
            outbox.mark_failed(session, message.id, SUPERSEDED, None)
        return
    with sending_slot(services, message):
        outcome = _send(services, message, wanted.email)
    with services.database.writing() as session:
        webhooks.record(session, message, outcome)
        if outcome.is_down:
            destinations.postpone(session, mail.SERVER, now + retries.LONGEST_POSTPONEMENT, now)
        if outcome.verdict is Verdict.DEAD:
            alert_dead_letter(session, message, outcome)


def _send(services: Services, message: Message, to: str) -> Outcome:
    now = utcnow()
    try:
        if services.mailer is None:
            raise Unreachable("no mail server is configured: set IMPRINT_SMTP_URL")
        picture = _sample(services, message.job_id) if message.topic == "training.completed" else None
        drafted = mail.draft(message.topic, MailFacts.parse(message.payload), services.settings.public_url, picture)
        services.mailer.send(
            mail.compose(
                drafted, sender=services.settings.mail_from, to=to, message_id=message.id, at=message.created_at
            )
        )
    except AnswerRefused as error:
        return Outcome(Verdict.DEAD, error.message, alert=True)
    except MessageDeferred as error:
        why = f"{DEFERRED}{error.message}"
        return retries.next_attempt(why, attempts=message.attempts, message_id=message.id, now=now, deferred=True)
    except Unreachable as error:
        return retries.next_attempt(error.message, attempts=message.attempts, message_id=message.id, now=now)
    return Outcome(Verdict.SENT)


def _sample(services: Services, job_id: str | None) -> bytes | None:
    """The newest preview of a training as a small JPEG; None if there is none or it cannot be read."""
    if job_id is None:
        return None
    try:
        found = list(services.store.list(keys.previews(job_id)))
        newest = max(found, default=None)
        if newest is None or services.store.head(newest).size_bytes > _MAX_SAMPLE_BYTES:
            return None
        # A remote trainer may have drawn it, so it is decoded like any untrusted picture.
        made = services.decoder.prepare(services.store.get(newest), resolution=_SAMPLE_PIXELS, aspect_buckets=True)
    except (ImageInvalid, NotFound, StoreUnavailable):
        return None
    return thumbnail(made.png)


# ---- alerts ---------------------------------------------------------------------------------------------------


def alert_dead_letter(session: Session, message: Message, outcome: Outcome) -> None:
    """Queue an alert about a notice that was given up, unless that was an alert itself."""
    if message.kind != "alert":
        about = f" of {message.job_id}" if message.job_id else ""
        what = {"mail": "an e-mail", "callback": "a Celery task or result", "confirmation": "a Celery task"}.get(
            message.kind, "a webhook"
        )
        channels.alert(session, "letter", f"{what}{about} was not delivered ({message.topic}): {outcome.error}")


def deliver_alerts(services: Services, message_id: str) -> None:
    """Send all waiting alerts as one message to a channel, or distribute them to the channels.

    Alerts to the operators are first distributed to the channels. A channel gets a message at most every
    `alert_every_s` seconds, and has attempts of its own.
    """
    now = utcnow()
    with services.database.writing() as session:
        message = outbox.find(session, message_id)
        if message is None:
            return
        rest = destinations.claim(session, "alert", message.destination or "", now, lease=outbox.CLAIM)
        waiting = [message, *(one for one in rest if one.id != message.id)]
        if message.destination == channels.OPERATORS:
            _distribute(session, services, waiting, now)
            return
    channel = next((one for one in services.channels if channels.destination(one) == message.destination), None)
    outcome = _send_alerts(channel, waiting, now)
    with services.database.writing() as session:
        for one in waiting:
            if outcome.verdict is Verdict.SENT:
                outbox.mark_sent(session, one.id)
            else:
                outbox.mark_failed(session, one.id, outcome.error, outcome.next_due)


def _distribute(session: Session, services: Services, waiting: list[Message], now: datetime) -> None:
    for channel in services.channels:
        place = channels.destination(channel)
        last = destinations.last_sent(session, place)
        due = max(now, last + timedelta(seconds=services.settings.alert_every_s)) if last else now
        for one in waiting:
            outbox.put(
                session, "alert", job_id=None, topic=one.topic, destination=place, payload=one.payload, due_at=due
            )
    for one in waiting:
        outbox.mark_sent(session, one.id)


def _send_alerts(channel: str | None, waiting: list[Message], now: datetime) -> Outcome:
    if channel is None:
        return Outcome(Verdict.DEAD, "the channel is no longer among IMPRINT_OPERATOR_CHANNELS")
    try:
        channels.send(channel, *channels.summary(waiting))
    except Unreachable as error:
        return retries.next_attempt(error.message, attempts=waiting[0].attempts, message_id=waiting[0].id, now=now)
    return Outcome(Verdict.SENT)
