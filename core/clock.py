"""Points in time: aware, in UTC, the same from SQLite as from PostgreSQL, and the same on every machine."""

import logging
import time
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator, TypeEngine

log = logging.getLogger(__name__)

TOLERANCE_S = 2.0  # a smaller difference between two clocks does not matter
_LONGEST_ANSWER_S = 1.0


class _ServerClock:
    """The clock of the database server, and since its last answer the monotonic clock of this process."""

    def __init__(self) -> None:
        self._answer: tuple[float, float] | None = None  # Unix time there, and monotonic time here
        self._is_off = False

    def follow(self, there: float, asked: float, answered: float) -> None:
        """The server's time was `there` between `asked` and `answered`, both monotonic."""
        if answered - asked > _LONGEST_ANSWER_S:
            return
        self._answer = (there, (asked + answered) / 2)
        ahead_s = self.ahead_s()
        is_off = abs(ahead_s) > TOLERANCE_S
        if is_off and not self._is_off:
            log.error(
                "this machine's clock is %.0f s %s the database server's, and Imprint goes by that one: synchronise "
                "both machines (chrony, timesyncd)", abs(ahead_s), "ahead of" if ahead_s > 0 else "behind",
            )  # fmt: skip
        elif self._is_off and not is_off:
            log.warning("this machine's clock agrees with the database server's again")
        self._is_off = is_off

    def ahead_s(self) -> float:
        """How many seconds this machine's clock is ahead of the server's; 0 if no server has answered."""
        answer = self._answer
        return 0.0 if answer is None else time.time() - answer[0] - (time.monotonic() - answer[1])

    def forget(self) -> None:
        self._answer, self._is_off = None, False


server_clock = _ServerClock()


def utcnow() -> datetime:
    """The current time, aware, in UTC, to the microsecond.

    Leases and due times are compared on several machines. If this machine's clock differs from that of the PostgreSQL
    server by more than `TOLERANCE_S`, this is the server's time.
    """
    ahead_s = server_clock.ahead_s()
    return datetime.fromtimestamp(time.time() - (ahead_s if abs(ahead_s) > TOLERANCE_S else 0.0), UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """A column for a point in time: it takes an aware value and gives one in UTC. Raises ValueError for a naive value.

    PostgreSQL stores `TIMESTAMPTZ`. SQLite has no time zones: there the column is `DATETIME`, a text in UTC that always
    has six decimals, so that texts sort like times.
    """

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(sa.DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"the time {value.isoformat()} has no time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
