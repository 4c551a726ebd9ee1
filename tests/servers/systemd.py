"""A machine of a test's own that systemd runs: namespaces over an overlay of this one, gone when the block ends."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.servers.process import ServerProcess

_ROOT = Path(__file__).resolve().parents[2]
_BOOT_S = 60.0


def why_not() -> str | None:
    """Why no such machine can be had here; None where it can."""
    if sys.platform != "linux" or not Path("/usr/lib/systemd/systemd").exists():
        return "systemd is not installed"
    if os.geteuid() != 0:
        return "only root can make the namespaces of a machine"
    if _cgroups() is None:
        return "no cgroup2 hierarchy is mounted"
    return None


class Machine:
    """A booted machine: `run` is a root shell on it, `put` writes a file."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True)
        above = _cgroups()
        assert above is not None, why_not()
        self._cgroup = above / f"imprint-test-{os.getpid()}-{time.monotonic_ns()}"
        self._cgroup.mkdir()
        python = Path(sys.base_prefix).resolve()
        command = ["bash", _ROOT / "tests" / "servers" / "machine.sh", folder, self._cgroup, python, checkout]
        self.log = folder.with_suffix(".log")
        self._process = ServerProcess([str(part) for part in command], log=self.log, cwd=_ROOT)
        self._process.wait_until(self._is_up, _BOOT_S)

    def _is_up(self) -> bool:
        return self._systemd() is not None and self.run("systemctl is-active --quiet machine.target").returncode == 0

    def _systemd(self) -> int | None:
        """Its process 1, as we see it."""
        with suppress(psutil.Error):
            for process in psutil.Process(self._process.pid).children():
                if process.name() == "systemd":
                    return process.pid
        return None

    def _enter(self) -> list[str]:
        spaces = ("mount", "uts", "ipc", "net", "pid", "cgroup")
        return ["nsenter", "--target", str(self._systemd()), *(f"--{space}" for space in spaces)]

    def run(self, script: str, timeout_s: float = 300) -> "subprocess.CompletedProcess[str]":
        """Run a script as root on the machine; its output, both streams together."""
        return subprocess.run(
            [*self._enter(), "--", "bash", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False, cwd="/",
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip

    def do(self, script: str, timeout_s: float = 300) -> str:
        """As `run`, and it has to succeed."""
        done = self.run(script, timeout_s)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{self.journal()[-6000:]}"
        return done.stdout

    def copy(self, source: Path, target: str, names: "list[str] | None" = None) -> None:
        """A folder of ours, or the named files of it, to `target` on the machine, for everybody to read."""
        made = subprocess.run(
            ["tar", "-C", source, "-cf", "-", "--mode=a+rX", *(names or ["."])], capture_output=True, check=True
        )
        pushed = subprocess.run(
            [*self._enter(), "--", "bash", "-c", f"mkdir -p {target} && tar -C {target} --no-same-owner -xf -"],
            input=made.stdout, check=False, cwd="/",
        )  # fmt: skip
        assert pushed.returncode == 0

    def journal(self) -> str:
        return self.run("journalctl --no-pager --output=short-monotonic --unit='imprint*' || true").stdout

    def end(self) -> None:
        """Cut the power."""
        self._process.end(kill=True)
        deadline = time.monotonic() + 10
        while self._cgroup.exists() and time.monotonic() < deadline:
            for folder in sorted(self._cgroup.rglob("*"), key=lambda path: -len(path.parts)):
                if folder.is_dir():
                    with suppress(OSError):
                        folder.rmdir()
            with suppress(OSError):  # until the last process of it is gone
                self._cgroup.rmdir()
            time.sleep(0.05)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def machine(folder: Path, checkout: Path) -> Iterator[Machine]:
    """A booted machine that has `checkout` at /opt/checkout, read-only."""
    booted = Machine(folder, checkout)
    try:
        yield booted
    finally:
        booted.end()


def _cgroups() -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, options = line.split()[:4]
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(place)
    return None
