"""Which errors of the database mean that it cannot be used now: decided here, once, for all callers.

SQLAlchemy sorts errors by the driver's classes, and those do not say enough: a PostgreSQL that has become read-only is
an `InternalError` like a defect of ours, and a misspelt column on SQLite an `OperationalError` like a full disk. So
errors are sorted by PostgreSQL's SQLSTATE and by SQLite's result code.
"""

import sqlite3
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import ExceptionContext

from core.clock import server_clock

# SQLSTATEs, or classes of them (two characters), after which the same transaction may succeed later.
_RETRYABLE = (
    "08",  # the connection is lost, or cannot be made
    "53",  # too many connections, no memory, the disk is full
    "57P",  # the server stops, starts, or ended this session
    "25006",  # read-only: a failover, or an operator's maintenance
    "25P03", "25P04",  # this session was ended because it was idle in its transaction, or its transaction took too long
    "40001", "40003", "40P01",  # two transactions collided, or it is not known whether this one was committed
    "55P03", "57014",  # the operator's lock_timeout and statement_timeout
    "58",  # the server's own disk or files
)  # fmt: skip
# After these the connection is of no use, and neither are the others in the pool: they may be of the same old server.
_CONNECTION_IS_LOST = ("08", "57P", "25006", "25P03", "25P04")
_SQLITE_RETRYABLE = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL,
})  # fmt: skip


class DatabaseAway(Exception):
    """The database does not answer, or takes no writes now. The same transaction may succeed later.

    The message has no SQL and no values, unlike SQLAlchemy's.
    """

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message, sqlstate)
        self.sqlstate = sqlstate

    def __str__(self) -> str:
        return f"{self.args[0]} ({self.sqlstate})" if self.sqlstate else str(self.args[0])


# What code outside of this package catches: a pool without a free connection is an outage too.
AWAY = (DatabaseAway, sa.exc.TimeoutError)


# In place of a ping: one round trip.
_ASK = "SELECT current_setting('transaction_read_only'), extract(epoch FROM clock_timestamp())::float8"


def watch(engine: sa.Engine) -> None:
    """Raise DatabaseAway in place of the driver's errors, and replace connections that became unusable."""
    sa.event.listen(engine, "handle_error", _translate)
    if engine.dialect.name == "postgresql":
        sa.event.listen(engine, "connect", _mark_new)
        sa.event.listen(engine, "checkout", _replace_stale)


def of(error: BaseException | None) -> DatabaseAway | None:
    """The outage that a driver's error reports; None if the error is a defect or a broken rule."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        return DatabaseAway(_first_line(error)) if code is not None and code & 0xFF in _SQLITE_RETRYABLE else None
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(sqlstate, str):
        return DatabaseAway(_first_line(error), sqlstate) if sqlstate.startswith(_RETRYABLE) else None
    # Without a SQLSTATE the error is not the server's: the driver could not reach it.
    is_lost = any(kind.__name__ in ("OperationalError", "InterfaceError") for kind in type(error).__mro__)
    return DatabaseAway(_first_line(error)) if is_lost else None


def _translate(context: ExceptionContext) -> DatabaseAway | None:
    away = of(context.original_exception)
    if away is None:
        return None
    if away.sqlstate is not None and away.sqlstate.startswith(_CONNECTION_IS_LOST):
        context.is_disconnect = True  # SQLAlchemy then drops this connection and all that are as old
    return None if context.is_pre_ping else away


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _mark_new(_connection: Any, record: Any) -> None:
    record.info["is_new"] = True


def _replace_stale(connection: Any, record: Any, _proxy: Any) -> None:
    """Replace a pooled connection that is broken, or that is read-only: a new one may reach a server that is not.

    A session keeps `default_transaction_read_only` from its start, and a connection to a server that is a standby since
    a failover stays on it. This costs one round trip, like SQLAlchemy's own ping, whose place it takes. It
    also asks for the server's time, by which all machines go.
    """
    is_new = record.info.pop("is_new", False)
    try:
        connection.autocommit = True  # one round trip, and no transaction is left open
        asked = time.monotonic()
        setting, there = connection.execute(_ASK).fetchone()
        server_clock.follow(there, asked, time.monotonic())
        is_read_only = setting == "on"
        connection.autocommit = False
    except Exception as error:
        if is_new:
            raise  # another new connection would not help
        raise sa.exc.DisconnectionError(_first_line(error)) from error
    if is_read_only and not is_new:
        raise sa.exc.DisconnectionError("the connection is read-only")
