"""The database, SQLite or PostgreSQL: read sessions, write transactions and migrations."""

import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel

from core.database_address import engine_arguments
from core.errors import SchemaUnknown
from storage import outages
from storage.outages import AWAY, DatabaseAway

__all__ = ["AWAY", "Database", "DatabaseAway", "insert_if_absent", "known_revisions"]

MIGRATIONS = Path(__file__).parent / "migrations"
_SQLITE_WAITS_S = 30  # for other transactions
_MIGRATION_LOCK = 0x1389_71  # any number, the same in every process: PostgreSQL's advisory lock for migrations


class Database:
    """Sessions on one database. Create it after a fork, never before: connections do not survive a fork.

    `writing()` is one transaction: `BEGIN IMMEDIATE` on SQLite, READ COMMITTED on PostgreSQL. Code that changes a row
    in more than one statement must lock the row first.
    """

    def __init__(
        self, address: str, after_commit: Mapping[str, Callable[[], None]] | None = None,
        before_commit: Mapping[str, Callable[[Session], None]] | None = None,
    ) -> None:  # fmt: skip
        """Callbacks by key run for a session that has the key in `session.info`.

        after_commit: after its commit. before_commit: as the last part of its transaction.
        """
        self._after_commit, self._before_commit = after_commit or {}, before_commit or {}
        self.address = sa.make_url(address)
        self.is_sqlite = self.address.get_backend_name() == "sqlite"
        if self.is_sqlite and self.address.database:
            Path(self.address.database).parent.mkdir(parents=True, exist_ok=True)
        address, options = engine_arguments(address)
        self.engine = sa.create_engine(address, **options)
        outages.watch(self.engine)
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        self._writer = self.engine.execution_options(imprint_writes=True)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read-only session: changes are not committed."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction, committed when the block ends and rolled back if it raises."""
        with Session(self._writer, expire_on_commit=False) as session:
            with session.begin():
                yield session
                for key, work in self._before_commit.items():
                    if key in session.info:
                        work(session)
            for key, call in self._after_commit.items():
                if key in session.info:
                    call()

    def check_writable(self) -> None:
        """Raise DatabaseAway if the database does not answer, or is read-only."""
        with self._writer.begin() as connection:  # on SQLite, BEGIN IMMEDIATE asks for the right to write
            if not self.is_sqlite and connection.scalar(sa.text("SHOW transaction_read_only")) == "on":
                raise DatabaseAway("the database is read-only", "25006")

    def migrate(self, revision: str = "head") -> None:
        """Migrate the schema to `revision`, once, even if several processes call this at the same time.

        Raises SchemaUnknown if a newer Imprint has already migrated the database to a revision unknown to this one.
        """
        if self.is_at(revision):
            return
        with self._writer.begin() as connection:
            if not self.is_sqlite:  # on SQLite BEGIN IMMEDIATE is the lock
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:k)"), {"k": _MIGRATION_LOCK})
            self._check_known(self.revision(connection))  # again: another process may have migrated meanwhile
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)

    def is_at(self, revision: str | None = "head") -> bool:
        """Whether the schema is at `revision`."""
        with self.engine.connect() as connection:
            return self.revision(connection) == (_scripts().get_current_head() if revision == "head" else revision)

    def revision(self, connection: sa.Connection) -> str | None:
        """The revision of the schema; None for a database without tables."""
        return MigrationContext.configure(connection).get_current_revision()

    def _check_known(self, present: str | None) -> None:
        if present is not None and present not in known_revisions():
            raise SchemaUnknown(
                f"the database is at revision {present}, and the newest one that this Imprint knows is "
                f"{_scripts().get_current_head()}: a newer Imprint has migrated the database. Install that version "
                "here too, or restore a backup from before the migration into a new database"
            )

    def empty_log(self) -> None:
        """On SQLite, empty the write-ahead log, which may still have rows that were deleted, if nobody reads it now."""
        if self.is_sqlite:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("COMMIT")  # `_begin_sqlite` began a transaction
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.exec_driver_sql("BEGIN")

    def close(self) -> None:
        self.engine.dispose()


def insert_if_absent(session: Session, row: SQLModel) -> None:
    """Insert `row`, or keep the existing row with the same key. The database decides races."""
    statement = _insert_if_absent(type(row), session.get_bind().dialect.name == "sqlite")
    session.connection().execute(statement, row.model_dump())


@cache
def _insert_if_absent(table: type[SQLModel], is_sqlite: bool) -> sa.Insert:
    return (sqlite.insert if is_sqlite else postgresql.insert)(table).on_conflict_do_nothing()


def lock_name(session: Session, name: str) -> None:
    """Wait until no other transaction has locked `name`, and lock it until this one ends. On SQLite every write
    transaction is alone.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(
            sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name}
        )


def known_revisions() -> list[str]:
    """All revisions that this Imprint knows, newest first."""
    return [script.revision for script in _scripts().walk_revisions()]


@cache
def _scripts() -> ScriptDirectory:
    """The migrations; read once in a process."""
    return ScriptDirectory.from_config(_alembic_config())


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # _begin_sqlite starts transactions, not the driver
    connection.execute(f"PRAGMA busy_timeout={_SQLITE_WAITS_S * 1000}").close()
    connection.create_function("exp", 1, math.exp, deterministic=True)  # not in every build of SQLite
    _write_ahead(connection)
    # FULL: a commit survives a power cut, as the ledger promises.
    # recursive_triggers: without it INSERT OR REPLACE bypasses the ledger's delete trigger.
    # secure_delete: deleted rows are overwritten in the file.
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "recursive_triggers=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch the file to write-ahead logging.

    The busy timeout does not apply to this switch: it first reads and then asks for the write lock, and SQLite refuses
    that at once to avoid a deadlock. So processes that open a new file together retry until one of them has switched
    it.
    """
    deadline = time.monotonic() + _SQLITE_WAITS_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("imprint_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
