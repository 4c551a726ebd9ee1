"""One server process in a group of its own, that ends when this process does, however that ends."""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from core.free_port import free_port as free_port
from tests.servers.launcher import Process, launcher

# Waits for the end of its input, which comes however the test process ends, and then ends the server's group.
# A parent-death signal would do the same, but it fires when the *thread* that started the server ends.
_GUARD = 'read -r _; kill -s KILL -- "-$1" 2>/dev/null'


class NotStarted(Exception):
    """The server ended, or did not answer in time. The message holds the end of its log."""


class ServerProcess:
    """Starts `argv` in a process group of its own. Signals go to the whole group.

    A module of Python starts from the launcher, which has the large libraries loaded; `fresh` starts an interpreter.
    """

    def __init__(
        self, argv: Sequence[str], *, log: Path, cwd: Path, env: Mapping[str, str] | None = None, fresh: bool = False
    ) -> None:
        self.argv, self.log = list(argv), log
        self._server: subprocess.Popen[bytes] | Process
        with log.open("ab") as out:
            if list(argv[:2]) == [sys.executable, "-m"] and not fresh:
                self._server = launcher().start(argv[2:], cwd=cwd, env=env, stdout=out.fileno(), stderr=out.fileno())
            else:
                self._server = subprocess.Popen(
                    argv,
                    cwd=cwd,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in the terminal is for the tests, not for the guard
        )

    @property
    def pid(self) -> int:
        return self._server.pid

    @property
    def alive(self) -> bool:
        return self._server.poll() is None

    @property
    def returncode(self) -> int | None:
        return self._server.poll()

    def signal(self, number: int) -> None:
        """Sent to the group even when its leader is gone: a child may have outlived it."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def end(self, *, kill: bool = False, timeout_s: float = 10.0) -> None:
        """SIGTERM and a wait, then SIGKILL for whatever is left of the group. Twice does no harm."""
        if self.alive and not kill:
            self.signal(signal.SIGCONT)  # a paused process does not hear SIGTERM
            self._server.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(timeout_s)
        self.signal(signal.SIGKILL)
        self._server.wait()
        self._guard.kill()
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()

    def wait_until(self, answers: Callable[[], bool], timeout_s: float) -> None:
        """Polls until `answers()`; raises NotStarted, with the process ended, if it does not come to that."""
        deadline = time.monotonic() + timeout_s
        while not answers():
            if not self.alive or time.monotonic() > deadline:
                why = "did not answer" if self.alive else f"ended with {self._server.returncode}"
                self.end(kill=True)
                raise NotStarted(f"{self._server.args!r} {why}:\n{self.tail()}")
            time.sleep(0.02)

    def tail(self, size: int = 2000) -> str:
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""


class Server(ABC):
    """What a test may do to a server, whichever it is."""

    @abstractmethod
    def start(self) -> None:
        """Returns when it answers; NotStarted with its log if it ends before that."""

    @abstractmethod
    def _end(self, *, kill: bool) -> None: ...

    @abstractmethod
    def _signal(self, number: int) -> None: ...

    def stop(self) -> None:
        """SIGTERM: it writes what is due and ends."""
        self._end(kill=False)

    def kill(self) -> None:
        """SIGKILL, as a crash of the machine would."""
        self._end(kill=True)

    def restart(self) -> None:
        """On the same ports and folder, whether it runs or not."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)
