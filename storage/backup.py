"""Backup and restore of the database and the object store, in a folder, while Imprint runs.

Rows are stored as JSON lines of one snapshot, so a backup of SQLite can be restored into PostgreSQL and the other way
round. The database is copied before the objects, so the backup has every object that a row refers to. Objects whose key
depends on their content are copied once: the next backup into the same folder adds new objects and removes deleted
ones.

A backup has `manifest.json` (written last: a folder without it is not a backup), `database-….jsonl.gz` and `objects/`.
"""

import gzip
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core.clock import utcnow
from core.errors import BackupInvalid, NotFound, ObjectExists
from core.files import atomic_file
from storage.database import Database, known_revisions
from storage.objects import ObjectStore
from storage.objects.local import LocalStore

MANIFEST = "manifest.json"
_FORMAT = 1
_ROWS_AT_ONCE = 500
# Keys that depend on the content or are written once: their objects never change.
_IMMUTABLE = ("originals/", "prepared/", "datasets/", "models/")


@dataclass(frozen=True)
class BackupManifest:
    """The manifest of a backup."""

    made_at: str
    revision: str
    database: str  # file with the rows
    database_sha256: str
    rows: dict[str, int]
    objects: dict[str, tuple[int, str]]  # key: size in bytes, sha256
    format: int = _FORMAT

    @property
    def size_bytes(self) -> int:
        return sum(size for size, _ in self.objects.values())


def backup(database: Database, store: ObjectStore, folder: Path) -> BackupManifest:
    """Copy the database and the objects into `folder`; if it already has a backup, copy only what changed.

    An older backup in the folder stays valid until the new one is complete. Raises StoreUnavailable, and BackupInvalid
    if the folder holds something else.
    """
    before = read_manifest(folder) if (folder / MANIFEST).exists() else None
    if before is None and folder.is_dir() and not {entry.name for entry in folder.iterdir()} <= {"objects"}:
        raise BackupInvalid(
            f"{folder} is not empty and has no backup: name an empty folder, or one that does not exist yet"
        )
    folder.mkdir(parents=True, exist_ok=True)
    made_at = utcnow()
    file = folder / f"database-{made_at:%Y%m%dT%H%M%S%f}.jsonl.gz"
    revision, rows = _dump(database, file)
    objects = _copy_objects(store, LocalStore(folder / "objects"), before.objects if before else {})
    manifest = BackupManifest(made_at.isoformat(), revision, file.name, _sha256(file), rows, objects)
    with atomic_file(folder / MANIFEST) as out:
        out.write(json.dumps(asdict(manifest)).encode())
    kept = LocalStore(folder / "objects")
    for gone in set(kept.list("")) - objects.keys():
        kept.delete(gone)
    for older in folder.glob("database-*.jsonl.gz"):
        if older != file:
            older.unlink()
    return manifest


def read_manifest(folder: Path) -> BackupManifest:
    """The manifest of the backup in `folder`. Raises BackupInvalid."""
    try:
        fields = json.loads((folder / MANIFEST).read_text())
        if fields["format"] != _FORMAT:
            raise BackupInvalid(f"{folder} has format {fields['format']}; this Imprint reads format {_FORMAT}")
        objects = {key: (size, digest) for key, (size, digest) in fields["objects"].items()}
        return BackupManifest(**fields | {"objects": objects})
    except FileNotFoundError:
        raise BackupInvalid(f"{folder} is not a backup: it has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BackupInvalid(f"{folder / MANIFEST} cannot be read: {error}") from None


def restore(database: Database, store: ObjectStore, folder: Path) -> BackupManifest:
    """Restore a backup into an empty database and a store, and migrate the schema to the newest revision.

    The objects are restored first, then the database in one transaction. If a restore is interrupted, call it again.
    Raises BackupInvalid, before anything is written, if the backup is damaged or was made by a newer Imprint, or if the
    database is not empty; StoreUnavailable.
    """
    manifest = read_manifest(folder)
    if manifest.revision not in known_revisions():
        raise BackupInvalid(
            f"{folder} was made by a newer Imprint (database revision {manifest.revision}): restore it there"
        )
    file = folder / manifest.database
    if not file.is_file() or _sha256(file) != manifest.database_sha256:
        raise BackupInvalid(f"{file} is missing or damaged: its checksum differs from the manifest")
    objects = LocalStore(folder / "objects")
    missing = [key for key, (size, _) in manifest.objects.items() if not _is_there(objects, key, size)]
    if missing:
        raise BackupInvalid(f"{folder} lacks {len(missing)} objects; the first is {missing[0]}")
    _check_empty(database, manifest.revision)
    _put_objects(objects, store, manifest)
    database.migrate(manifest.revision)
    _load(database, file, manifest)
    database.migrate()
    return manifest


# ---- rows -----------------------------------------------------------------------------------------------------


def _dump(database: Database, file: Path) -> tuple[str, dict[str, int]]:
    """Write all rows of one snapshot to `file`. Returns the revision and the number of rows of each table."""
    counts: dict[str, int] = {}
    # In SQLite a read transaction is a snapshot; PostgreSQL needs this isolation level.
    options: dict[str, Any] = {} if database.is_sqlite else {"isolation_level": "REPEATABLE READ"}
    with database.engine.connect().execution_options(**options) as connection, connection.begin():
        schema = sa.MetaData()
        schema.reflect(connection)
        revision = database.revision(connection)
        if revision is None:
            raise BackupInvalid("the database has no tables: there is nothing to back up")
        with gzip.open(file, "wt", encoding="utf-8") as out:
            for table in _tables(schema):
                counts[table.name] = 0
                # Ordered by primary key; ledger entries in the order in which they were written.
                order = [table.c.seq] if "seq" in table.c and table.name == "credit_entry" else table.primary_key
                for row in connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(
                    table.select().order_by(*order)
                ):
                    fields = {name: _to_json(value) for name, value in row._mapping.items()}
                    out.write(json.dumps([table.name, fields]) + "\n")
                    counts[table.name] += 1
    return revision, counts


def _load(database: Database, file: Path, manifest: BackupManifest) -> None:
    with database.writing() as session:
        connection = session.connection()
        schema = sa.MetaData()
        schema.reflect(connection)
        counts = dict.fromkeys(manifest.rows, 0)
        for name, rows in _batches(file):
            table = schema.tables[name]
            times = {column.name for column in table.c if isinstance(column.type, sa.DateTime)}
            for row in rows:
                row.update({key: _parse_time(row[key], database.is_sqlite) for key in times & row.keys()})
            connection.execute(table.insert(), rows)
            counts[name] += len(rows)
        if counts != manifest.rows:
            raise BackupInvalid(f"{file} has {counts} rows; its manifest says {manifest.rows}")
        if not database.is_sqlite:
            _advance_sequences(connection, schema)


def _batches(file: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    name, held = "", list[dict[str, Any]]()
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            table, row = json.loads(line)
            if held and (table != name or len(held) >= _ROWS_AT_ONCE):
                yield name, held
                held = []
            name = table
            held.append(row)
    if held:
        yield name, held


def _tables(schema: sa.MetaData) -> list[sa.Table]:
    return [table for table in schema.sorted_tables if table.name != "alembic_version"]


def _to_json(value: Any) -> Any:
    if isinstance(value, datetime):
        value = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return value.isoformat()
    return value


def _parse_time(text: str | None, is_sqlite: bool) -> datetime | None:
    if text is None:
        return None
    value = datetime.fromisoformat(text)
    return value.replace(tzinfo=None) if is_sqlite else value


def _advance_sequences(connection: sa.Connection, schema: sa.MetaData) -> None:
    """Restored rows do not advance PostgreSQL's sequences, so set each to the highest restored number."""
    for table in _tables(schema):
        for column in table.primary_key:
            sequence = connection.scalar(
                sa.text("SELECT pg_get_serial_sequence(:table, :column)"), {"table": table.name, "column": column.name}
            )
            highest = connection.scalar(sa.select(sa.func.max(column))) if sequence else None
            if highest is not None:
                connection.execute(
                    sa.text("SELECT setval(:sequence, :value)"), {"sequence": sequence, "value": highest}
                )


def _check_empty(database: Database, revision: str) -> None:
    with database.engine.connect() as connection:
        present = database.revision(connection)
        if present is None:
            return
        schema = sa.MetaData()
        schema.reflect(connection)
        filled = [table.name for table in _tables(schema) if connection.execute(table.select().limit(1)).first()]
    if filled:
        raise BackupInvalid(f"the database is not empty ({', '.join(filled)}): restore into a new database")
    if present != revision:
        raise BackupInvalid(
            f"the database is empty but at revision {present}; the backup is at {revision}: create a new database"
        )


# ---- objects --------------------------------------------------------------------------------------------------


def _copy_objects(
    store: ObjectStore, kept: LocalStore, before: dict[str, tuple[int, str]]
) -> dict[str, tuple[int, str]]:
    copied: dict[str, tuple[int, str]] = {}
    with tempfile.TemporaryDirectory(prefix="imprint-backup-") as temporary:
        path = Path(temporary) / "object"
        for key in store.list(""):
            known = before.get(key)
            if known is not None and key.startswith(_IMMUTABLE) and _is_there(kept, key, known[0]):
                copied[key] = known
                continue
            try:
                store.get_file(key, path)
            except NotFound:  # a checkpoint of a job that has ended meanwhile
                continue
            kept.put_file(key, path)
            copied[key] = path.stat().st_size, _sha256(path)
    return copied


def _put_objects(objects: LocalStore, store: ObjectStore, manifest: BackupManifest) -> None:
    with tempfile.TemporaryDirectory(prefix="imprint-restore-") as temporary:
        path = Path(temporary) / "object"
        for key, (_, digest) in manifest.objects.items():
            objects.get_file(key, path)
            if _sha256(path) != digest:
                raise BackupInvalid(
                    f"the object {key} of the backup is damaged: its checksum differs from the manifest"
                )
            try:
                store.put_file(key, path, create_only=key.startswith(_IMMUTABLE))
            except ObjectExists:  # from an interrupted restore, or the same store
                continue


def _is_there(objects: LocalStore, key: str, size: int) -> bool:
    try:
        return objects.head(key).size_bytes == size
    except NotFound:
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while part := source.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
