"""The migrated schema and the classes that read it say the same."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlmodel import SQLModel

import credits.tables
import notifications.tables
from storage.database import Database

pytestmark = pytest.mark.both_databases

MODULES = (credits.tables, notifications.tables)  # imported, so that the metadata has their tables
OURS = {"credit_account", "credit_hold", "credit_entry", "outbox_message", "task_call"}


def test_migrations_make_what_the_classes_say(database: Database) -> None:
    assert set(SQLModel.metadata.tables) >= OURS

    def is_ours(thing: object, name: str | None, kind: str, *_: object) -> bool:
        return kind != "table" or name in OURS

    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "include_object": is_ours}
        )
        assert compare_metadata(context, SQLModel.metadata) == []


def test_a_migrated_database_is_left_alone(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alembic.command.upgrade", lambda *_: pytest.fail("migrated twice"))
    database.migrate()
