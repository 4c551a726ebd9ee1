"""A private PostgreSQL for tests: its own folder, its own loopback port, ended when the block ends."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import sqlalchemy as sa

from tests.servers.process import Server, free_port

START_S = 60.0

# Waits for the end of its input, which comes however the test process ends; then the server goes, and its folder.
_GUARD = 'read -r _; kill -s QUIT -- "$1" 2>/dev/null; sleep 1; rm -rf -- "$2"'


def find_postgres() -> Path | None:
    """The folder with `initdb` and `postgres`: the newest under /usr/lib/postgresql, else that on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


class PostgresServer(Server):
    """One cluster in one folder, with `fsync` on; its address stays the same over `kill`, `stop` and `start`."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        self._binaries = binaries
        self._user = _give_away(folder)
        self._data = folder / "data"
        initdb = [binaries / "initdb", "-D", self._data, "-U", "imprint", "-A", "trust", "-E", "UTF8", "--no-sync"]
        _run(self._user, folder, *initdb)
        self._port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"postgresql+psycopg://imprint@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Returns when it answers, after whatever recovery it needs; RuntimeError with its log if it does not."""
        if self._server is not None:
            raise RuntimeError(f"the server on port {self._port} runs already")
        self._server = _start(self._user, self.folder, self._binaries / "postgres", self._data, self._port)
        self._guard = _guard(self._server, self.folder)
        _wait(self.address, self._server, self.folder / "log")

    def kill(self) -> None:
        """Immediate mode: every connection is cut, nothing is written any more, the next start recovers from its log.

        SIGKILL would leave children and their shared memory behind, which the next start would wait for.
        """
        self._end(kill=True)

    def _end(self, *, kill: bool) -> None:
        if self._server is None or self._guard is None:
            return
        self._guard.kill()
        self._guard.communicate()
        self.resume()  # a paused server hears nothing else
        _stop(self._server, signal.SIGQUIT if kill else signal.SIGINT)
        self._server = self._guard = None

    def _signal(self, number: int) -> None:
        """To the server and all its children: each of them is a session of its own."""
        if self._server is None:
            raise RuntimeError("the server does not run")
        server = psutil.Process(self._server.pid)
        for process in (server, *server.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


@contextmanager
def postgres_node() -> Iterator[PostgresServer]:
    """A running server that a test may kill and start again. FileNotFoundError without one."""
    binaries = find_postgres()
    if binaries is None:
        raise FileNotFoundError("no PostgreSQL here: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="imprint-postgres-"))
    try:
        server = PostgresServer(folder, binaries)
        try:
            server.start()
            yield server
        finally:
            server.kill()  # at once and without a last checkpoint: nobody reads this database again
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres_server() -> Iterator[str]:
    """A running server at the address that this yields. FileNotFoundError without one."""
    with postgres_node() as server:
        yield server.address


def new_database(address: str, template: str | None = None) -> str:
    """Make a database on the server at `address`, empty or a copy of another address's; its own address."""
    name = f"t_{secrets.token_hex(8)}"
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        like = f" TEMPLATE {sa.make_url(template).database}" if template else ""
        connection.exec_driver_sql(f"CREATE DATABASE {name}{like}")
    return sa.make_url(address).set(database=name).render_as_string(hide_password=False)


def _give_away(folder: Path) -> str | None:
    """The user to run as: PostgreSQL refuses root, so as root the folder goes to another."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = next(name for name in ("postgres", "nobody") if name in names)
    shutil.chown(folder, user)
    return user


def _run(user: str | None, folder: Path, *command: str | Path) -> None:
    subprocess.run(command, cwd=folder, user=user, env=_environment(), check=True, capture_output=True)


def _start(user: str | None, folder: Path, binary: Path, data: Path, port: int) -> subprocess.Popen[bytes]:
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": "100",
        "shared_buffers": "32MB",
        "fsync": "on",  # a test of crash safety on a server that is not crash-safe would prove nothing
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [binary, "-D", data, *options],
            cwd=folder,
            user=user,
            env=_environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C in the terminal is for the tests, not for the server
        )


def _guard(server: subprocess.Popen[bytes], folder: Path) -> subprocess.Popen[bytes]:
    command = ["/bin/sh", "-c", _GUARD, "guard", str(server.pid), str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    engine = sa.create_engine(address, poolclass=sa.NullPool)
    until = time.monotonic() + START_S
    while True:
        try:
            engine.connect().close()
        except sa.exc.OperationalError:
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"PostgreSQL did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)
        else:
            return


def _stop(server: subprocess.Popen[bytes], number: int) -> None:
    server.send_signal(number)
    try:
        server.wait(timeout=20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
