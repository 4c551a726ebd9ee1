"""Logs: JSON lines that carry the job and its stage, and a file that several processes turn over together."""

import json
import logging
import multiprocessing
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from core.telemetry.logging import ConsoleLines, JsonLines, SharedRotatingFile, set_up, stage_context
from jobs.lifecycle.lease_keeper import LeaseKeeper
from jobs.lifecycle.leases import Lease
from storage.database import Database
from storage.tables.jobs import Stage

PROCESSES, LINES = 4, 400


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was before afterwards."""
    root = logging.getLogger()
    before = root.handlers, root.level
    yield root
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers, root.level = before


def read(log_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (log_dir / "errors.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("root")
def test_a_warning_is_one_json_line_with_its_job_and_stage(tmp_path: Path) -> None:
    set_up(tmp_path / "logs", "INFO")
    log = logging.getLogger("jobs.test")
    log.warning("before")
    with stage_context("job_1", "train"):
        log.info("not for the file")
        log.warning("loss is %s", 'high\nand "odd"')
        with stage_context("job_2", "upload"):
            log.error("inner")
        log.error("outer again")
    before, first, inner, outer = read(tmp_path / "logs")
    assert "job_id" not in before
    assert (first["job_id"], first["stage"], first["level"]) == ("job_1", "train", "WARNING")
    assert first["message"] == 'loss is high\nand "odd"'
    assert (first["logger"], first["at"][-6:]) == ("jobs.test", "+00:00")
    assert (inner["job_id"], inner["stage"]) == ("job_2", "upload")
    assert (outer["job_id"], outer["stage"]) == ("job_1", "train")


@pytest.mark.usefixtures("root")
def test_a_traceback_stays_on_its_line(tmp_path: Path) -> None:
    set_up(tmp_path, "INFO")
    try:
        raise ValueError("what went wrong")
    except ValueError:
        logging.getLogger("jobs.test").exception("unexpected")
    (line,) = read(tmp_path)
    assert "what went wrong" in line["traceback"]


@pytest.mark.usefixtures("root")
def test_each_thread_works_on_its_own_job(tmp_path: Path) -> None:
    set_up(tmp_path, "INFO")
    together = threading.Barrier(4)

    def work(number: int) -> None:
        with stage_context(f"job_{number}", "train"):
            together.wait(60)
            logging.getLogger("jobs.test").warning("%d", number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(line["job_id"], line["message"]) for line in read(tmp_path)} == {
        (f"job_{number}", str(number)) for number in range(4)
    }


def test_people_read_the_job_on_the_console_too() -> None:
    record = logging.LogRecord("jobs", logging.WARNING, __file__, 1, "slow", None, None)
    with stage_context("job_1", "train"):
        assert "[job_1 train] slow" in ConsoleLines().format(record)
    assert "[" not in ConsoleLines().format(record)


@pytest.mark.parametrize("width", [80, 30_000], ids=["short", "longer than any buffer"])
def test_processes_that_turn_over_one_file_lose_and_tear_no_line(tmp_path: Path, width: int) -> None:
    fork = multiprocessing.get_context("fork")
    together = fork.Barrier(PROCESSES)
    lines = LINES if width < 1000 else 60
    total = PROCESSES * lines * (width + 200)
    children = [
        fork.Process(target=_write, args=(tmp_path, together, number, lines, width, total // 6))
        for number in range(PROCESSES)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    files = sorted(tmp_path.glob("errors.jsonl*"))
    assert len(files) >= 3, "it was turned over"
    found = Counter(json.loads(line)["message"].rstrip(".") for file in files for line in file.open())
    assert found == {f"{number}/{line}": 1 for number in range(PROCESSES) for line in range(lines)}


def _write(folder: Path, together: Barrier, number: int, lines: int, width: int, max_bytes: int) -> None:
    handler = SharedRotatingFile(folder / "errors.jsonl", max_bytes=max_bytes, keep=20)
    handler.setFormatter(JsonLines())
    handler.handleError = lambda _record: sys.exit(3)  # type: ignore[method-assign]
    log = logging.Logger("test")
    log.addHandler(handler)
    together.wait(30)
    for line in range(lines):
        log.warning("%s", f"{number}/{line}".ljust(width, "."))


def test_no_more_files_are_kept_than_were_asked_for(tmp_path: Path) -> None:
    handler = SharedRotatingFile(tmp_path / "errors.jsonl", max_bytes=100, keep=2)
    for number in range(20):
        handler.emit(logging.makeLogRecord({"msg": f"{number} {'x' * 60}"}))
    handler.close()
    kept = {file.name: file.read_text().split()[0] for file in tmp_path.glob("errors.jsonl*")}
    assert set(kept) == {"errors.jsonl", "errors.jsonl.1", "errors.jsonl.2"}
    assert int(kept["errors.jsonl"]) > int(kept["errors.jsonl.1"]) > int(kept["errors.jsonl.2"])


# ---- a disk that takes no line --------------------------------------------------------------------------------


def full(log_dir: Path) -> Path:
    """The log file on a full disk."""
    log_dir.mkdir()
    path = log_dir / "errors.jsonl"
    path.symlink_to("/dev/full")
    return path


def without_inodes(log_dir: Path) -> Path:
    """A folder in which no file can be made."""
    log_dir.write_text("a file where the folder should be")
    return log_dir


@pytest.mark.parametrize("trouble", [full, without_inodes])
def test_a_line_that_cannot_be_written_raises_nothing_and_is_counted(
    root: logging.Logger, tmp_path: Path, trouble: Callable[[Path], Path]
) -> None:
    logs = tmp_path / "logs"
    in_the_way = trouble(logs)
    set_up(logs, "INFO")
    log = logging.getLogger("jobs.test")
    for number in range(3):
        log.warning("line %d", number)
    in_the_way.unlink()
    log.warning("the disk has room again")
    first, second = read(logs)
    assert first["message"] == "3 log line(s) could not be written here before this one"
    assert second["message"] == "the disk has room again"
    assert root.handlers, "nothing was taken away"


@pytest.mark.usefixtures("root")
def test_a_terminal_that_is_gone_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        set_up(tmp_path / "logs", "INFO")
        for number in range(2000):  # more than a buffer holds
            logging.getLogger("jobs.test").info("line %d", number)
        monkeypatch.undo()
        with suppress(OSError):
            terminal.close()


def test_a_full_log_disk_does_not_end_the_thread_that_keeps_leases(root: logging.Logger, tmp_path: Path) -> None:
    """It logs each renewal that fails. If that raised, every lease of the process would expire from then on."""
    database = Database(f"sqlite:///{tmp_path}/imprint.db")  # without tables: every renewal fails
    set_up(tmp_path / "logs", "INFO")
    root.handlers = [SharedRotatingFile(full(tmp_path / "full"), max_bytes=10_000, keep=1)]
    keeper = LeaseKeeper(database, 0.03)
    with keeper.keeping(Lease("job_1", Stage.TRAIN, 1, 1)):
        [handler] = root.handlers
        assert isinstance(handler, SharedRotatingFile)
        deadline = time.monotonic() + 60
        while handler._lost < 5:
            assert time.monotonic() < deadline, "the thread has ended"
            time.sleep(0.01)
    assert keeper._thread is not None
    assert keeper._thread.is_alive()
    database.close()
