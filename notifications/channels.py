"""Operators' channels (Slack, Discord, Telegram, mail …) through Apprise. Many alerts become one message."""

import hashlib
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from core.clock import utcnow
from core.errors import Unreachable
from notifications import outbox
from notifications.messages import Message

OPERATORS = "apprise://operators"  # the destination of new alerts, from which they go to each channel
GATHERING = timedelta(seconds=5)  # alerts of the same few seconds are one message
_MAX_LINES, _MAX_LINE = 20, 300


def alert(session: Session, topic: str, text: str) -> None:
    """Queue an alert to the operators in the transaction of its cause. `text` contains no secret."""
    outbox.put(
        session, "alert", job_id=None, topic=topic, destination=OPERATORS, payload={"text": text[:_MAX_LINE]},
        due_at=utcnow() + GATHERING,
    )  # fmt: skip


def destination(channel: str) -> str:
    """The name of a channel in the outbox. Its address is a secret."""
    return f"apprise://{hashlib.sha256(channel.encode()).hexdigest()[:12]}"


def check(channels: Sequence[str]) -> None:
    """Raises ValueError for an address that Apprise does not know."""
    apprise = _apprise()
    for number, channel in enumerate(channels, 1):
        if not apprise.Apprise().add(channel):
            raise ValueError(f"channel {number} is not an address that Apprise knows")


def summary(alerts: Sequence[Message]) -> tuple[str, str]:
    """Title and body of one message for many alerts. Equal texts are counted."""
    counts: dict[str, int] = {}
    for one in alerts:
        text = str(one.payload["text"])
        counts[text] = counts.get(text, 0) + 1
    lines = [text if count == 1 else f"{text} ({count} times)" for text, count in counts.items()]
    shown = lines[:_MAX_LINES]
    if len(lines) > _MAX_LINES:
        shown.append(f"and {len(lines) - _MAX_LINES} more: see imprint audit, imprint letters and the logs")
    title = "Imprint: 1 alert" if len(alerts) == 1 else f"Imprint: {len(alerts)} alerts"
    return title, "\n".join(shown)


def send(channel: str, title: str, body: str) -> None:
    """Send a message. Raises Unreachable if the channel does not accept it."""
    apprise = _apprise()
    sender = apprise.Apprise()
    if not sender.add(channel) or not sender.notify(title=title, body=body, body_format="text"):
        raise Unreachable("the channel did not accept the message")


def _apprise() -> Any:
    import apprise  # the import takes a second, so only alerts pay for it

    # Its logs may contain a channel's address, and with it a token.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    return apprise
