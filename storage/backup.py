"""Back-up and restore of database and object store, in a folder, while everything runs.

The rows are kept as JSON lines of one snapshot of the database, so a back-up of SQLite can be restored into PostgreSQL
and the other way round. The database comes first and the objects after it: then every object that the rows speak of is
in the back-up. Objects whose key is made of their content are copied once; a second back-up into the same folder
copies what is new and takes away what is gone.

A folder holds `manifest.json` (written last: a folder without it is no back-up), `database-….jsonl.gz` and `objects/`.
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
# Keys made of what is in them, or written once: what lies under one never changes.
_IMMUTABLE = ("originals/", "prepared/", "datasets/", "models/")


@dataclass(frozen=True)
class BackupManifest:
    """What a back-up holds, as its manifest says."""

    made_at: str
    revision: str
    database: str  # the file with the rows
    database_sha256: str
    rows: dict[str, int]
    objects: dict[str, tuple[int, str]]  # key: size in bytes, sha256
    format: int = _FORMAT

    @property
    def size_bytes(self) -> int:
        return sum(size for size, _ in self.objects.values())


def backup(database: Database, store: ObjectStore, folder: Path) -> BackupManifest:
    """Copy everything that must not be lost into `folder`, or what is new since the last time there.

    Raises StoreUnavailable; BackupInvalid where the folder holds something else. An older back-up in the folder stays
    good until the new one is complete.
    """
    before = read_manifest(folder) if (folder / MANIFEST).exists() else None
    if before is None and folder.is_dir() and not {entry.name for entry in folder.iterdir()} <= {"objects"}:
        raise BackupInvalid(f"{folder} holds other things: name a folder that is empty or not there yet")
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
    """What the back-up in `folder` says that it holds. Raises BackupInvalid."""
    try:
        fields = json.loads((folder / MANIFEST).read_text())
        if fields["format"] != _FORMAT:
            raise BackupInvalid(f"{folder} was made in format {fields['format']}, and this Imprint reads {_FORMAT}")
        objects = {key: (size, digest) for key, (size, digest) in fields["objects"].items()}
        return BackupManifest(**fields | {"objects": objects})
    except FileNotFoundError:
        raise BackupInvalid(f"{folder} holds no back-up: there is no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BackupInvalid(f"{folder / MANIFEST} cannot be read: {error}") from None


def restore(database: Database, store: ObjectStore, folder: Path) -> BackupManifest:
    """Put a back-up into an empty database and a store, and bring the schema up to date.

    The database is filled in one transaction, after the objects: a restore that was broken off is begun again with the
    same call. Raises BackupInvalid, before anything is written, for a back-up that is damaged or that this Imprint is
    too old for, and for a database that is not empty; StoreUnavailable.
    """
    manifest = read_manifest(folder)
    if manifest.revision not in known_revisions():
        raise BackupInvalid(
            f"{folder} was made by a newer Imprint (database revision {manifest.revision}): restore it with that one"
        )
    file = folder / manifest.database
    if not file.is_file() or _sha256(file) != manifest.database_sha256:
        raise BackupInvalid(f"{file} is missing or damaged: its checksum is not that of the manifest")
    objects = LocalStore(folder / "objects")
    missing = [key for key, (size, _) in manifest.objects.items() if not _is_there(objects, key, size)]
    if missing:
        raise BackupInvalid(f"{folder} lacks {len(missing)} object(s), the first is {missing[0]}")
    _check_empty(database, manifest.revision)
    _put_objects(objects, store, manifest)
    database.migrate(manifest.revision)
    _load(database, file, manifest)
    database.migrate()
    return manifest


# ---- rows -----------------------------------------------------------------------------------------------------


def _dump(database: Database, file: Path) -> tuple[str, dict[str, int]]:
    """All rows as the database was at one moment; its revision, and how many rows of each table."""
    counts: dict[str, int] = {}
    # SQLite: a read transaction is a snapshot of its own. PostgreSQL has to be asked for one.
    options: dict[str, Any] = {} if database.is_sqlite else {"isolation_level": "REPEATABLE READ"}
    with database.engine.connect().execution_options(**options) as connection, connection.begin():
        schema = sa.MetaData()
        schema.reflect(connection)
        revision = database.revision(connection)
        if revision is None:
            raise BackupInvalid("the database has no tables yet: there is nothing to back up")
        with gzip.open(file, "wt", encoding="utf-8") as out:
            for table in _tables(schema):
                counts[table.name] = 0
                # In the order of the primary key, but the ledger's entries in the order in which they were written.
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
            raise BackupInvalid(f"{file} holds {counts} rows, and its manifest says {manifest.rows}")
        if not database.is_sqlite:
            _wind_sequences(connection, schema)


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


def _wind_sequences(connection: sa.Connection, schema: sa.MetaData) -> None:
    """PostgreSQL counts by itself only what it numbers itself: the next number comes after the highest restored."""
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
        raise BackupInvalid(
            f"the database is not empty ({', '.join(filled)}): restore into a new one, so that nothing is mixed up"
        )
    if present != revision:
        raise BackupInvalid(
            f"the database is empty but at revision {present}, and the back-up was made at {revision}: make a new one"
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
                raise BackupInvalid(f"the object {key} of the back-up is damaged: its checksum is not the manifest's")
            try:
                store.put_file(key, path, create_only=key.startswith(_IMMUTABLE))
            except ObjectExists:  # of a restore that was broken off, or the same store
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
