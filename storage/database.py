"""One database, SQLite or PostgreSQL: sessions that read, transactions that write, and the schema's migrations."""

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel

from core.errors import SchemaUnknown

MIGRATIONS = Path(__file__).parent / "migrations"
# What SQLAlchemy raises when the database went away, or would not let us in just now.
AWAY = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)
_SQLITE_WAITS_S = 30  # for the others' transactions
_MIGRATION_LOCK = 0x1389_71  # any number, the same in every process: PostgreSQL's advisory lock for migrations


class Database:
    """Sessions over one address. Make it after a fork, never before: connections do not survive one.

    `writing()` is one transaction that sees nothing of others half-way: on SQLite `BEGIN IMMEDIATE`, on
    PostgreSQL READ COMMITTED, where whoever changes a row in more than one statement locks it first.
    """

    def __init__(self, address: str, after_commit: Mapping[str, Callable[[], None]] | None = None) -> None:
        """after_commit: each is called after every commit of a session that has its key in `session.info`."""
        self._after_commit = after_commit or {}
        self.address = sa.make_url(address)
        self.is_sqlite = self.address.get_backend_name() == "sqlite"
        if self.is_sqlite and self.address.database:
            Path(self.address.database).parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {} if self.is_sqlite else {"pool_pre_ping": True}
        self.engine = sa.create_engine(address, **options)
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        self._writer = self.engine.execution_options(imprint_writes=True)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for looking; nothing it changes is kept."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        with Session(self._writer, expire_on_commit=False) as session:
            with session.begin():
                yield session
            for key, call in self._after_commit.items():
                if key in session.info:
                    call()

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema up to `revision`, once however many processes ask at the same time.

        Raises SchemaUnknown where the database is at a revision that this Imprint does not know: a newer one has
        migrated it.
        """
        if self.is_at(revision):
            return
        with self._writer.begin() as connection:
            if not self.is_sqlite:  # SQLite's BEGIN IMMEDIATE is lock enough
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:k)"), {"k": _MIGRATION_LOCK})
            self._check_known(self.revision(connection))  # again: another may have come first
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)

    def is_at(self, revision: str | None = "head") -> bool:
        """Whether the schema is at `revision` already."""
        with self.engine.connect() as connection:
            return self.revision(connection) == (_scripts().get_current_head() if revision == "head" else revision)

    def revision(self, connection: sa.Connection) -> str | None:
        """Which revision the schema is at; None for a database without tables."""
        return MigrationContext.configure(connection).get_current_revision()

    def _check_known(self, present: str | None) -> None:
        if present is not None and present not in known_revisions():
            raise SchemaUnknown(
                f"the database is at revision {present}, and this Imprint knows {_scripts().get_current_head()} as "
                "the newest: a newer Imprint has migrated it. Install that version here too, or restore a back-up "
                "from before into a new database"
            )

    def close(self) -> None:
        self.engine.dispose()


def insert_if_absent(session: Session, row: SQLModel) -> None:
    """Insert `row`; where its key is there already, leave what is there. Races are the database's to decide."""
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    session.connection().execute(insert(type(row)).values(**row.model_dump()).on_conflict_do_nothing())


def known_revisions() -> list[str]:
    """All revisions that this Imprint can bring a database to, the newest first."""
    return [script.revision for script in _scripts().walk_revisions()]


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_alembic_config())


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite, not by the driver
    connection.execute(f"PRAGMA busy_timeout={_SQLITE_WAITS_S * 1000}").close()
    _write_ahead(connection)
    # FULL: a commit survives a power cut, which is what a ledger promises.
    # recursive_triggers: without it INSERT OR REPLACE passes the journal's delete trigger.
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "recursive_triggers=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Have the file keep a write-ahead log.

    Here alone the busy timeout does not help: the change reads first and then wants the write lock, and SQLite gives
    whoever stands between the two no time, lest two of them wait for each other. So processes that open a new file
    together ask again, and find it changed by one of them.
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
