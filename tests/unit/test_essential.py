"""Threads that a process cannot work without: their end is seen and ends the process. No other code starts threads."""

import ast
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Threads that may end: `where`, and why.
MAY_END = {
    "core/essential.py": "it starts the essential ones",
    "jobs/admission/places.py": "it computes one result; till then places are those by age, and a later call retries",
    "core/outbound/network.py": "a look-up of one name; it is abandoned when it takes too long",
    "storage/objects/s3_deadline.py": "the timer of one call",
    "training/engine/engine.py": "it ends when it is idle, and fails its jobs if it breaks (tests/training)",
}
PROGRAM = """
import sys, threading
from core import essential
def run():
    {body}
essential.start("leases", run)
threading.Event().wait(30)
"""


@pytest.mark.parametrize(
    ("body", "message"), [("raise OSError(28, 'No space left on device')", "No space left"), ("return", "it returned")]
)
def test_its_end_is_seen_and_ends_the_process(body: str, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)], cwd=ROOT, capture_output=True, text=True, timeout=20,
        check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGTERM
    assert "the thread 'leases'" in done.stderr
    assert message in done.stderr


def test_a_process_that_does_not_end_when_asked_ends_at_once_later() -> None:
    deaf = "essential._GRACE_S = 0.2; import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    program = PROGRAM.format(body="raise ValueError").replace("def run", deaf + "def run")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=20, check=False)
    assert done.returncode == 70


def test_the_end_is_seen_even_if_logging_is_broken() -> None:
    broken = (
        "import logging; logging.getLogger().addHandler(type('H', (logging.Handler,), {'emit': lambda *_: 1 / 0})())\n"
    )
    program = PROGRAM.format(body="raise ValueError('gone')").replace("def run", broken + "def run")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == -signal.SIGTERM
    assert "ValueError: gone" in done.stderr


def test_every_thread_of_the_service_is_essential_or_may_end() -> None:
    folders = ("cli", "core", "credits", "generation", "jobs", "notifications", "storage", "tasks", "training", "web")
    starts = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("threading.Thread", "Thread", "threading.Timer")
    }
    assert starts == MAY_END.keys()


def test_every_handler_of_logs_is_one_of_ours() -> None:
    """A handler that raises into its caller could end any thread, so only core/telemetry/logging.py makes handlers.

    `python -m training` has no such threads, and a console only.
    """
    made = {
        path.relative_to(ROOT).as_posix()
        for folder in ("cli", "core", "demo", "jobs", "notifications", "storage", "tasks", "training", "web")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(("basicConfig", "addHandler", "StreamHandler", "FileHandler"))
    }
    assert made <= {"core/telemetry/logging.py", "training/__main__.py"}
