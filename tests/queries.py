"""What a thread asks of the database, for tests that count it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from storage.database import Database


@contextmanager
def queries_of(database: Database) -> Iterator[list[str]]:
    """The statements that this thread executes; the outbox sender and other threads ask the same engine."""
    queries: list[str] = []
    here = threading.get_ident()

    def note(*given: object) -> None:
        if threading.get_ident() == here:
            queries.append(str(given[2]))

    sa.event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield queries
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", note)
