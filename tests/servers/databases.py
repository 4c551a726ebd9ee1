"""Fixtures: a migrated database of a test's own, on SQLite and on PostgreSQL. Import them in a conftest."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from storage.database import Database
from tests.servers.postgres import find_postgres, new_database, postgres_server

BOTH = ("sqlite", "postgresql")

_compiled: dict[tuple[Any, ...], tuple[sa.Dialect, dict[Any, Any]]] = {}


@sa.event.listens_for(sa.Engine, "engine_connect")
def _share_compiled_statements(connection: sa.Connection) -> None:
    """Each test has a database and so an engine of its own, and SQLAlchemy compiles statements for each engine.

    That was a fifth of the time of a test. A compiled statement belongs to a dialect, so connections to the same
    version of the same database share one. A dialect also has its engine's listeners to errors: they must be the same.
    """
    own = connection.dialect
    kind = (type(own), getattr(own, "server_version_info", None), *own.dispatch.handle_error)
    connection.dialect, compiled = _compiled.setdefault(kind, (own, {}))
    connection.execution_options(compiled_cache=compiled)


@pytest.fixture(scope="session")
def postgres() -> Iterator[tuple[str, str]]:
    """One server for each test process: its address, and that of a migrated database to copy."""
    if find_postgres() is None:
        pytest.fail("no PostgreSQL here: tools/setup.sh test installs one")
    with postgres_server() as server:
        template = new_database(server)
        _migrate(template)
        yield server, template


@pytest.fixture(params=BOTH)
def address(request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a migrated database that only this test uses; the test runs once on each kind."""
    if request.param == "postgresql":
        server, template = request.getfixturevalue("postgres")
        return new_database(server, template)
    migrated = tmp_path_factory.getbasetemp() / "migrated.db"  # one for each test process
    if not migrated.exists():
        _migrate(f"sqlite:///{migrated}")
    assert not migrated.with_name("migrated.db-wal").exists(), "the one file has all of it"
    shutil.copy(migrated, tmp_path / "imprint.db")
    return f"sqlite:///{tmp_path}/imprint.db"


@pytest.fixture
def database(address: str) -> Iterator[Database]:
    database = Database(address)
    yield database
    database.close()


def _migrate(address: str) -> None:
    database = Database(address)
    database.migrate()
    database.close()
