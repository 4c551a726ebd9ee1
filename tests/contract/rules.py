"""Rules that the database keeps, and writes that break one each.

On PostgreSQL the refusal must name the rule, and once the rule is dropped the same write goes through. SQLite cannot
drop constraints and keys: there every write is refused, by a check of that name where it is a check.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from storage.database import Database

BOTH, SQLITE, POSTGRESQL = ("sqlite", "postgresql"), ("sqlite",), ("postgresql",)


@dataclass(frozen=True)
class Rule:
    """A rule, and a write that breaks it, once the rules that stand `before` it are out of the way."""

    name: str
    write: str
    on: tuple[str, ...] = BOTH
    before: tuple[str, ...] = ()


def connected(database: Database, books: Sequence[str]) -> Iterator[sa.Connection]:
    """A connection to a database with rows that break no rule."""
    with database.engine.connect() as connection:
        for statement in books:
            connection.exec_driver_sql(statement)
        connection.commit()
        yield connection


def each_refuses_by_itself(connection: sa.Connection, rules: Sequence[Rule]) -> None:
    kind = connection.dialect.name
    triggers = _triggers(connection)
    for rule in (rule for rule in rules if kind in rule.on):
        for name in rule.before:
            connection.exec_driver_sql(_drop(connection, name, triggers))
        with pytest.raises(IntegrityError) as refusal, connection.begin_nested():
            connection.exec_driver_sql(rule.write)
        if kind == "postgresql":
            _assert_names(rule, refusal.value, triggers)
            connection.exec_driver_sql(_drop(connection, rule.name, triggers))
            connection.exec_driver_sql(rule.write)
        elif "CHECK" in str(refusal.value):
            assert f"CHECK constraint failed: {rule.name}\n" in str(refusal.value), rule
        connection.rollback()


def every_rule_is_tried(
    connection: sa.Connection, rules: Sequence[Rule], tables: Collection[str], but: Collection[str] = ()
) -> None:
    kind = connection.dialect.name
    tried = {rule.name for rule in rules if kind in rule.on}
    named = _constraints(connection, tables)
    named |= {name for name, table in _triggers(connection).items() if table in tables}
    if kind == "postgresql":
        named = {name for name in named if not name.endswith("_integers")}  # the columns' types see to these
    else:
        tried = {name for name in tried if not name.endswith(("_pkey", "_fkey"))}  # these have no names here
    assert named - set(but) == tried


def _constraints(connection: sa.Connection, tables: Collection[str]) -> set[str]:
    if connection.dialect.name == "sqlite":
        schema = connection.exec_driver_sql("SELECT tbl_name, sql FROM sqlite_master")
        text = " ".join(str(sql) for table, sql in schema if table in tables)
        return set(re.findall(r"(?:CONSTRAINT|UNIQUE INDEX) (\w+)", text))
    found = connection.exec_driver_sql(
        "SELECT conname, conrelid::regclass::text FROM pg_constraint WHERE contype IN ('c', 'u', 'p', 'f')"
        " UNION SELECT indexname, tablename FROM pg_indexes WHERE indexdef LIKE 'CREATE UNIQUE%%'"
    )
    return {str(name) for name, table in found if table in tables}


def _triggers(connection: sa.Connection) -> dict[str, str]:
    """The name of each trigger, and its table."""
    if connection.dialect.name == "sqlite":
        query = "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger'"
    else:
        query = "SELECT tgname, tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal"
    return {str(name): str(table) for name, table in connection.exec_driver_sql(query)}


def _drop(connection: sa.Connection, name: str, triggers: dict[str, str]) -> str:
    on_postgresql = connection.dialect.name == "postgresql"
    if name in triggers:
        return f"DROP TRIGGER {name}" + (f" ON {triggers[name]}" if on_postgresql else "")
    if not on_postgresql:
        return f"DROP INDEX {name}"
    found = connection.exec_driver_sql(f"SELECT conrelid::regclass FROM pg_constraint WHERE conname = '{name}'")  # noqa: S608
    table = found.scalar()  # an index that is no constraint has none
    return f"ALTER TABLE {table} DROP CONSTRAINT {name} CASCADE" if table else f"DROP INDEX {name}"


def _assert_names(rule: Rule, refusal: IntegrityError, triggers: dict[str, str]) -> None:
    diagnosis = refusal.orig.diag  # type: ignore[union-attr]
    if rule.name in triggers:
        assert re.search(r"credit_refuse|credit_entry_gapless", diagnosis.context), rule
    else:
        assert diagnosis.constraint_name == rule.name, rule
