"""Logs: text on the console for people, JSON lines in a rotating file (and, if set, on the console) for machines.

Every line has the id of the job that it is about, in every process and thread.
"""

import json
import logging
import logging.handlers
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal, TextIO

from core.telemetry import metrics, tracing

_job_id: ContextVar[str | None] = ContextVar("job_id", default=None)
_stage: ContextVar[str | None] = ContextVar("stage", default=None)
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_task: ContextVar[tuple[str, str] | None] = ContextVar("task", default=None)  # its name and id

_JOB = re.compile(r"\bjob_[0-9a-z]{1,40}\b")


@contextmanager
def stage_context(job_id: str, stage: str) -> Iterator[None]:
    """Everything logged inside belongs to this job and stage."""
    tokens = _job_id.set(job_id), _stage.set(stage)
    try:
        yield
    finally:
        _job_id.reset(tokens[0])
        _stage.reset(tokens[1])


@contextmanager
def job_context(job_id: str | None) -> Iterator[None]:
    """Everything logged inside belongs to this job."""
    token = _job_id.set(job_id)
    try:
        yield
    finally:
        _job_id.reset(token)


@contextmanager
def task_context(task: str, task_id: str) -> Iterator[None]:
    """Everything logged inside belongs to this Celery task."""
    token = _task.set((task, task_id))
    try:
        yield
    finally:
        _task.reset(token)


@contextmanager
def request_context(request_id: str, path: str = "") -> Iterator[None]:
    """Everything logged inside belongs to this HTTP request, and to the job in its path."""
    token, named = _request_id.set(request_id), _JOB.search(path)
    try:
        with job_context(named[0] if named else None):
            yield
    finally:
        _request_id.reset(token)


def _context(record: logging.LogRecord) -> dict[str, Any]:
    """What a line is about: the work of this thread, or the task that Celery logs a line about."""
    data = getattr(record, "data", None)
    celery_task = data if isinstance(data, dict) and "id" in data and "name" in data else {}
    task, task_id = _task.get() or (celery_task.get("name"), celery_task.get("id"))
    named = _JOB.search(str(celery_task.get("args", "")))  # only the id: other arguments may be secret
    return {
        "job_id": _job_id.get() or (named[0] if named else None),
        "stage": _stage.get(),
        "task": task,
        "task_id": task_id,
        "request_id": _request_id.get(),
        "trace_id": tracing.trace_id(),
    }


class JsonLines(logging.Formatter):
    """One record, one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "thread": record.threadName,
            **_context(record),
            **getattr(record, "fields", {}),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in line.items() if value is not None}, default=str)


class ConsoleLines(logging.Formatter):
    """`time level [job stage] message`, for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        job = f" [{' '.join(filter(None, (_job_id.get(), _stage.get())))}]" if _job_id.get() else ""
        job += f" [{_request_id.get()}]" if _request_id.get() else ""
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{at} {record.levelname:<7}{job} {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(log_dir: Path, level: str, console_format: Literal["text", "json"] = "text") -> None:
    """Log to the console from `level` on, and warnings and errors also to `errors.jsonl` in `log_dir`.

    Several processes append to that one file. A line is one short write. The first process that finds the file full
    rotates it; the others notice that its inode has changed (`WatchedFileHandler`).
    """
    root = logging.getLogger()
    root.setLevel(level)
    console = ConsoleHandler()
    console.setFormatter(JsonLines() if console_format == "json" else ConsoleLines())
    errors = SharedRotatingFile(log_dir / "errors.jsonl", max_bytes=10_000_000, keep=5)
    errors.setLevel(logging.WARNING)
    errors.setFormatter(JsonLines())
    root.handlers = [console, errors]
    # Libraries that log every request at INFO.
    for chatty in ("httpx2", "httpcore2", "botocore", "boto3", "urllib3", "alembic", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


class _NeverRaises(logging.Handler):
    """A handler that loses a line rather than raise into its caller, which may be a thread that must not end.

    Lines are lost while the disk is full or has no inodes, or the terminal is gone. They are counted, and the handler
    says how many once it can write again.
    """

    _lost = 0

    def handle(self, record: logging.LogRecord) -> bool:
        try:
            if self._lost:
                self._report_lost()
            return bool(super().handle(record))
        except Exception:  # noqa: BLE001 - whatever it is
            self.handleError(record)
            return False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Count a lost line. Standard handlers call this too when they cannot write."""
        self._lost += 1
        with suppress(Exception):
            metrics.LOG_LINES_LOST.add(1)

    def _report_lost(self) -> None:
        lost, self._lost = self._lost, 0
        text = "%d log line(s) could not be written here before this one"
        try:
            super().handle(logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (lost,), None))
        except Exception:  # noqa: BLE001 - as for any line
            self._lost = 1
        if self._lost:  # this one is lost too
            self._lost = lost


class ConsoleHandler(_NeverRaises, logging.StreamHandler[TextIO]):
    """Writes to standard error."""


class SharedRotatingFile(_NeverRaises, logging.handlers.WatchedFileHandler):
    """A log file that several processes append to, rotated by size. It is opened with the first line.

    Python's RotatingFileHandler loses lines when two processes rotate at once. Here a lock file lets one process
    rotate, and the others reopen the file.
    """

    def __init__(self, path: Path, *, max_bytes: int, keep: int) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self._path, self._max_bytes, self._keep = path, max_bytes, keep

    def emit(self, record: logging.LogRecord) -> None:
        self._rotate_if_full()
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Also drop the stream, which may hold a part of the line: the next line opens the file again."""
        super().handleError(record)
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(Exception):
                stream.close()

    def _open(self) -> TextIOWrapper:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def _rotate_if_full(self) -> None:
        import fcntl

        try:
            if self._path.stat().st_size < self._max_bytes:
                return
            with self._path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self._path.stat().st_size < self._max_bytes:
                    return  # another process was faster
                for number in range(self._keep - 1, 0, -1):
                    older = self._path.with_name(f"{self._path.name}.{number}")
                    if older.exists():
                        older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        except FileNotFoundError:
            return  # rotated by another process just now; the parent class reopens the file
