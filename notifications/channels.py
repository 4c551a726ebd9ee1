"""Operators' channels (Slack, Discord, Telegram, mail …) through Apprise; a storm of alerts becomes one message."""

import hashlib
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from core.clock import utcnow
from core.errors import Unreachable
from notifications import outbox
from notifications.outbox import Message

OPERATORS = "apprise://operators"  # where alerts are put: from there they go to each channel
GATHERING = timedelta(seconds=5)  # what happens together is told together
_MAX_LINES, _MAX_LINE = 20, 300


def alert(session: Session, topic: str, text: str) -> None:
    """Queue an alert to the operators, in the transaction of what it tells. `text` is ours and holds no secret."""
    outbox.put(
        session, "alert", job_id=None, topic=topic, destination=OPERATORS, payload={"text": text[:_MAX_LINE]},
        due_at=utcnow() + GATHERING,
    )  # fmt: skip


def destination(channel: str) -> str:
    """The name of a channel in the outbox: its address is a secret."""
    return f"apprise://{hashlib.sha256(channel.encode()).hexdigest()[:12]}"


def check(channels: Sequence[str]) -> None:
    """ValueError for an address that Apprise does not know."""
    apprise = _apprise()
    for number, channel in enumerate(channels, 1):
        if not apprise.Apprise().add(channel):
            raise ValueError(f"channel {number} is no address that Apprise knows")


def summary(alerts: Sequence[Message]) -> tuple[str, str]:
    """Title and body of one message for many alerts, the same text once."""
    counts: dict[str, int] = {}
    for one in alerts:
        text = str(one.payload["text"])
        counts[text] = counts.get(text, 0) + 1
    lines = [text if count == 1 else f"{text} ({count} times)" for text, count in counts.items()]
    shown = lines[:_MAX_LINES]
    if len(lines) > _MAX_LINES:
        shown.append(f"and {len(lines) - _MAX_LINES} more; see imprint audit, imprint letters and the logs")
    title = "Imprint: 1 alert" if len(alerts) == 1 else f"Imprint: {len(alerts)} alerts"
    return title, "\n".join(shown)


def send(channel: str, title: str, body: str) -> None:
    """Raises Unreachable when the channel did not take it."""
    apprise = _apprise()
    sender = apprise.Apprise()
    if not sender.add(channel) or not sender.notify(title=title, body=body, body_format="text"):
        raise Unreachable("the channel did not take it")


def _apprise() -> Any:
    import apprise  # takes a second, which only who alerts should wait for

    # What it logs may hold the channel's address, and with it a token.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    return apprise
