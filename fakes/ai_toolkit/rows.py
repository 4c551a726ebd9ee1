"""The database of the fake server: jobs, queues, losses and settings, in SQLite as in a real one."""

import json
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_TABLES = """
CREATE TABLE IF NOT EXISTS job (
    id TEXT PRIMARY KEY, name TEXT UNIQUE, gpu_ids TEXT, job_config TEXT, created_at TEXT, updated_at TEXT,
    status TEXT DEFAULT 'stopped', stop INTEGER DEFAULT 0, return_to_queue INTEGER DEFAULT 0, step INTEGER DEFAULT 0,
    total_steps INTEGER, info TEXT DEFAULT '', speed_string TEXT DEFAULT '', queue_position INTEGER, pid INTEGER,
    job_type TEXT DEFAULT 'train', job_ref TEXT, save_now INTEGER DEFAULT 0, sample_now INTEGER DEFAULT 0
);
CREATE TABLE IF NOT EXISTS queue (id INTEGER PRIMARY KEY, gpu_ids TEXT UNIQUE, is_running INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS loss (job_id TEXT, step INTEGER, wall_time REAL, value REAL, PRIMARY KEY (job_id, step));
CREATE TABLE IF NOT EXISTS setting (key TEXT PRIMARY KEY, value TEXT);
"""
_FLAGS = ("stop", "return_to_queue", "save_now", "sample_now")

Row = dict[str, Any]


class NameTaken(Exception):
    """A job with this name exists."""


class JobRows:
    """The database. The API and the worker use it from different threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        # Data survives the process, but perhaps not a power failure: enough for a fake.
        self._connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;" + _TABLES)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write in one transaction."""
        with self._lock:
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    def all(self, query: str, *values: Any) -> list[Row]:
        with self._lock:
            return [dict(row) for row in self._connection.execute(query, values)]

    def run(self, query: str, *values: Any) -> None:
        with self._lock:
            self._connection.execute(query, values)

    # ---- jobs ----

    def create(self, given: Mapping[str, Any]) -> Row:
        """Create a job. Raises NameTaken, and KeyError for missing fields."""
        now = _now()
        row = (
            str(uuid.uuid4()),
            str(given["name"]),
            str(given["gpu_ids"]),
            json.dumps(given["job_config"]),
            now,
            now,
            1000,
            given.get("job_type") or "train",
            given.get("job_ref"),
        )
        try:
            self.run(
                "INSERT INTO job (id, name, gpu_ids, job_config, created_at, updated_at, queue_position, job_type, "
                "job_ref) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                *row,
            )
        except sqlite3.IntegrityError:
            raise NameTaken from None
        made = self.job(row[0])
        assert made is not None  # noqa: S101 - it was written a line ago
        return made

    def job(self, job_id: str) -> Row | None:
        found = self.all("SELECT * FROM job WHERE id = ?", job_id)
        return _with_booleans(found[0]) if found else None

    def jobs(self, where: str = "1", *values: Any) -> list[Row]:
        """The jobs that match `where`, in queue order."""
        query = f"SELECT * FROM job WHERE {where} ORDER BY queue_position, rowid"  # noqa: S608 - `where` is never user input
        return [_with_booleans(row) for row in self.all(query, *values)]

    def change(self, job_id: str, *, touch: bool = False, **values: Any) -> None:
        """Update a job. The API also sets `updated_at`, the trainer does not."""
        if touch:
            values["updated_at"] = _now()
        names = ", ".join(f"{name} = ?" for name in values)
        self.run(f"UPDATE job SET {names} WHERE id = ?", *values.values(), job_id)  # noqa: S608

    def delete(self, job_id: str) -> None:
        self.run("DELETE FROM job WHERE id = ?", job_id)
        self.run("DELETE FROM loss WHERE job_id = ?", job_id)

    def enqueue(self, job_id: str) -> None:
        """Append a job to its queue. Creates the queue if needed, but does not start it."""
        last = self.all("SELECT max(queue_position) AS last FROM job")[0]["last"] or 0
        self.change(job_id, touch=True, status="queued", stop=0, info="Job queued", queue_position=last + 1000)
        self.run("INSERT OR IGNORE INTO queue (gpu_ids) SELECT gpu_ids FROM job WHERE id = ?", job_id)

    # ---- queues ----

    def queues(self) -> list[Row]:
        found = self.all("SELECT * FROM queue ORDER BY id")
        return [{**row, "is_running": bool(row["is_running"])} for row in found]

    def run_queue(self, gpu_ids: str, running: bool) -> None:
        self.run("UPDATE queue SET is_running = ? WHERE gpu_ids = ?", int(running), gpu_ids)

    # ---- losses and settings ----

    def add_losses(self, job_id: str, points: list[tuple[int, float]]) -> None:
        now = datetime.now(UTC).timestamp()
        with self._lock:
            self._connection.executemany(
                "INSERT OR REPLACE INTO loss VALUES (?, ?, ?, ?)",
                [(job_id, step, now, value) for step, value in points],
            )

    def setting(self, key: str, default: str) -> str:
        found = self.all("SELECT value FROM setting WHERE key = ?", key)
        return str(found[0]["value"]) if found else default

    def set(self, key: str, value: str) -> None:
        self.run("INSERT OR REPLACE INTO setting VALUES (?, ?)", key, value)


def _with_booleans(row: Row) -> Row:
    return {**row, **{name: bool(row[name]) for name in _FLAGS}}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
