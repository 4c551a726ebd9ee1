"""The fake ai-toolkit server that ships with the code, as a process of a test's own, and ways to trouble it."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.servers.process import Server, ServerProcess, free_port

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-password-that-nobody-may-see"
START_S = 90.0


class FakePod(Server):
    """`options` are those of `imprint fake-pod`: `slots=4`, `faults=7`, `old_api=True`."""

    def __init__(self, folder: Path, *, token: str = TOKEN, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.token, self.port = folder, token, free_port()
        self.log, self.journal_file = folder / "pod.log", folder / "journal.jsonl"
        given = {"port": self.port, "token": token, "journal": self.journal_file, "folder": folder / "state", **options}
        self.arguments = [part for name, value in given.items() for part in _argument(name, value)]
        self._process: ServerProcess | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The settings of an Imprint that trains here."""
        return {"IMPRINT_AI_TOOLKIT_URL": self.url, "IMPRINT_AI_TOOLKIT_TOKEN": self.token}

    def start(self) -> None:
        """On the same port and folder as before: what it kept is there again."""
        argv = [sys.executable, "-m", "fakes.ai_toolkit", *self.arguments]
        size = self.log.stat().st_size if self.log.exists() else 0
        self._process = ServerProcess(argv, log=self.log, cwd=ROOT)
        self._process.wait_until(lambda: b"fake ai-toolkit server on" in self.log.read_bytes()[size:], START_S)

    def _end(self, *, kill: bool) -> None:
        if self._process is not None:
            self._process.end(kill=kill)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.signal(number)

    # ---- looking, and trouble ----

    def ask(self, path: str, body: Any = None) -> Any:
        """One plain request, beside any client of ours, which no fault befalls; its JSON."""
        headers = {"Authorization": f"Bearer {self.token}", "X-Fake-Look": "1"}
        with httpx2.Client(trust_env=False, timeout=30) as http:
            method = "GET" if body is None else "POST"
            return http.request(method, self.url + path, headers=headers, json=body).json()

    def fault(self, kind: str, method: str = "", path: str = "", times: int = 1) -> None:
        """What befalls the next requests that fit: error, gateway, hang, reset, lost, truncate."""
        self.ask("/_fake/faults", {"kind": kind, "method": method, "path": path, "times": times})

    def fate(self, name: str, fate: str) -> None:
        """What becomes of a job half-way: die, error, stall; or slow from the start."""
        self.ask("/_fake/fates", {"name": name, "fate": fate})

    def journal(self, method: str = "", path: str = "", about: str = "") -> list[dict[str, Any]]:
        """The requests so far, oldest first, whose path fits the regular expression."""
        lines = self.journal_file.read_text().splitlines() if self.journal_file.exists() else []
        found = [json.loads(line) for line in lines]
        return [
            line
            for line in found
            if method in ("", line["method"]) and re.search(path, line["path"]) and about in ("", line["about"])
        ]

    def left(self) -> dict[str, list[str]]:
        """What is on it: names of jobs, datasets and output folders."""
        outputs = self.folder / "state" / "output"
        return {
            "jobs": [row["name"] for row in self.ask("/api/jobs")["jobs"]],
            "datasets": self.ask("/api/datasets/list"),
            "outputs": sorted(path.name for path in outputs.iterdir()) if outputs.is_dir() else [],
        }


def _argument(name: str, value: Any) -> list[str]:
    option = "--" + name.replace("_", "-")
    if value is True:
        return [option]
    return [option, str(value)]


@contextmanager
def fake_pod(folder: Path, **options: Any) -> Iterator[FakePod]:
    """A running server for a `with` block."""
    pod = FakePod(folder, **options)
    pod.start()
    try:
        yield pod
    finally:
        pod.kill()
