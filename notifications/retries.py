"""What the answer to a webhook means, and when to try again."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum

from core.outbound.http_status import is_retryable

# Seconds before each attempt: ten of them over three days and three hours.
SCHEDULE_S = (0, 5, 5 * 60, 30 * 60, *(hours * 3600 for hours in (2, 5, 10, 14, 20, 24)))
JITTER = 0.1  # share of the delay, up or down, so that a receiver that was down does not get everything at once
LONGEST_WAIT_S = 24 * 3600  # the longest delay that a receiver can ask for

# Attempts if the receiver refuses the message.
_REFUSED_ATTEMPTS = 3
_NOT_LET_IN = {401, 403}
_GONE = 410


# The longest time for which other messages to a receiver that is down are postponed.
LONGEST_POSTPONEMENT = timedelta(seconds=60)


class Verdict(StrEnum):
    SENT = "sent"
    RETRY = "retry"
    DEAD = "dead"
    DISABLED = "disabled"  # the receiver wants no more messages


@dataclass(frozen=True)
class Outcome:
    """The outcome of one attempt. `error` is our text; `alert` means that an operator should look."""

    verdict: Verdict
    error: str = ""
    next_due: datetime | None = None
    status: int | None = None
    alert: bool = False
    deferred: bool = False  # the receiver works, but did not take this message

    @property
    def is_down(self) -> bool:
        """Whether the receiver does not work at all, rather than refusing this message."""
        no_answer = self.status is None or is_retryable(self.status)
        return self.verdict is Verdict.RETRY and no_answer and not self.deferred


def outcome_of(status: int, headers: Mapping[str, str], *, attempts: int, message_id: str, now: datetime) -> Outcome:
    """What an answer means after `attempts` failed attempts.

    2xx: sent. 410: the receiver is disabled. 401 and 403: tried again by the schedule, with an alert, since only a
    person can correct them. 408, 425, 429, 5xx, and 3xx (never followed): tried again, not before `Retry-After`. Any
    other 4xx: dead after three attempts.
    """
    error = f"the receiver answered {status}"
    if 200 <= status < 300:
        return Outcome(Verdict.SENT, status=status)
    if status == _GONE:
        return Outcome(Verdict.DISABLED, error, status=status, alert=True)
    is_refused = 400 <= status < 500 and status not in _NOT_LET_IN and not is_retryable(status)
    if is_refused and attempts + 1 >= _REFUSED_ATTEMPTS:
        return Outcome(Verdict.DEAD, error, status=status, alert=True)
    asked = _asked_delay(headers, now)
    alert = status in _NOT_LET_IN
    return next_attempt(
        error, attempts=attempts, message_id=message_id, now=now, asked=asked, status=status, alert=alert
    )


def next_attempt(
    error: str,
    *,
    attempts: int,
    message_id: str,
    now: datetime,
    asked: timedelta = timedelta(),
    status: int | None = None,
    alert: bool = False,
    deferred: bool = False,
) -> Outcome:
    """The next attempt by the schedule, but not before `asked`; dead after the last one."""
    made = attempts + 1
    if made >= len(SCHEDULE_S):
        return Outcome(Verdict.DEAD, error, status=status, alert=True)
    wait = max(timedelta(seconds=SCHEDULE_S[made] * _jitter(message_id, made)), asked)
    return Outcome(Verdict.RETRY, error, now + wait, status, alert, deferred)


def _jitter(message_id: str, attempt: int) -> float:
    """1 ± JITTER, derived from message and attempt: as good as random, and the same each time."""
    share = zlib.crc32(f"{message_id}/{attempt}".encode()) / 2**32
    return 1 + JITTER * (2 * share - 1)


def _asked_delay(headers: Mapping[str, str], now: datetime) -> timedelta:
    """`Retry-After`, in seconds or as a date, within limits; zero if it is missing or invalid."""
    text = next((value for name, value in headers.items() if name.lower() == "retry-after"), "").strip()
    if text.isascii() and text.isdigit():
        return timedelta(seconds=min(int(text[:9]), LONGEST_WAIT_S))
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return timedelta()
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(max(until - now, timedelta()), timedelta(seconds=LONGEST_WAIT_S))
