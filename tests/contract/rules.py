"""Rules that the database keeps: writes that break one each, and what shows that each rule stands by itself.

On PostgreSQL the refusal must name the rule, and once the rule is dropped the same write goes through. SQLite drops
neither constraints nor keys, so there a second database is made from the schema without the rule.
"""

import re
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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


def each_is_needed_on_sqlite(folder: Path, books: Sequence[str], rules: Sequence[Rule]) -> None:
    migrated = Database(f"sqlite:///{folder}/schema.db")
    migrated.migrate()
    with migrated.engine.connect() as connection:
        query = "SELECT name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type = 'trigger', rowid"
        schema = [(str(name), str(table), str(sql)) for name, table, sql in connection.exec_driver_sql(query)]
    migrated.close()
    for rule in (rule for rule in rules if "sqlite" in rule.on):
        with_it = _scratch(schema, rule.before, books)
        with pytest.raises(sqlite3.IntegrityError):
            with_it.execute(rule.write)
        with_it.close()
        without = _scratch(schema, (rule.name, *rule.before), books)
        without.execute(rule.write)
        without.close()


def _scratch(
    schema: Sequence[tuple[str, str, str]], dropped: Collection[str], books: Sequence[str]
) -> sqlite3.Connection:
    """A database in memory with the schema but for some of its rules, and rows that break none."""
    made = sqlite3.connect(":memory:", isolation_level=None)
    made.execute("PRAGMA foreign_keys=ON")
    made.execute("PRAGMA recursive_triggers=ON")
    keys = {name.removesuffix("_pkey") for name in dropped if name.endswith("_pkey")}
    left_out = 0
    for name, table, sql in schema:
        if name.startswith("sqlite_"):
            continue
        if name in dropped:
            left_out += 1
            continue
        for rule in dropped:
            shorter = _without(sql, table, rule) if sql.startswith("CREATE TABLE") else sql
            left_out += shorter != sql
            sql = shorter
        for key in keys:  # nobody may point at a key that is not there
            sql = _leave_out(sql, rf"FOREIGN KEY.*REFERENCES {key}\b")
            sql = re.sub(rf" REFERENCES {key} \(id\)", "", sql)
        made.execute(sql)
    assert left_out >= len(dropped), f"{dropped} are not in the schema"
    for statement in books:
        made.execute(statement)
    return made


def _without(sql: str, table: str, rule: str) -> str:
    """A CREATE TABLE without one of its constraints."""
    if rule == f"{table}_pkey" and "NOT NULL PRIMARY KEY" in sql:
        return sql.replace("NOT NULL PRIMARY KEY", "NOT NULL")
    if rule.endswith("_fkey") and rule.startswith(f"{table}_"):
        column = rule.removeprefix(f"{table}_").removesuffix("_fkey")
        if re.search(rf"\b{column} TEXT NOT NULL REFERENCES", sql):
            return re.sub(rf"({column} TEXT NOT NULL) REFERENCES \w+ \(id\)", r"\1", sql)
        return _leave_out(sql, rf"FOREIGN KEY\s*\({column}\)")
    if rule == f"{table}_pkey":
        return _leave_out(sql, r"PRIMARY KEY")
    return _leave_out(sql, rf"CONSTRAINT {rule}\b")


def _leave_out(sql: str, begins: str) -> str:
    head, _, body = sql.partition("(")
    if not head.startswith("CREATE TABLE"):
        return sql
    parts, depth, last = [], 0, 0
    for position, letter in enumerate(body):
        depth += (letter == "(") - (letter == ")")
        if (letter == "," and depth == 0) or depth < 0:
            parts.append(body[last:position].strip())
            last = position + 1
            if depth < 0:
                break
    kept = [part for part in parts if not re.match(begins, part)]
    return sql if kept == parts else f"{head}({', '.join(kept)})"


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
