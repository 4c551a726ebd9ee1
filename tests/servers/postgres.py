"""A private PostgreSQL for tests: its own folder, its own loopback port, ended when the block ends."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

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


@contextmanager
def postgres_server() -> Iterator[str]:
    """A running server with `fsync` on, at the address that this yields. FileNotFoundError without one."""
    binaries = find_postgres()
    if binaries is None:
        raise FileNotFoundError("no PostgreSQL here: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="imprint-postgres-"))
    try:
        user = _give_away(folder)
        data = folder / "data"
        _run(user, folder, binaries / "initdb", "-D", data, "-U", "imprint", "-A", "trust", "-E", "UTF8", "--no-sync")
        port = _free_port()
        server = _start(user, folder, binaries / "postgres", data, port)
        guard = _guard(server, folder)
        try:
            address = f"postgresql+psycopg://imprint@127.0.0.1:{port}/postgres"
            _wait(address, server, folder / "log")
            yield address
        finally:
            guard.kill()
            guard.communicate()
            _stop(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    with (folder / "log").open("wb") as log:
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


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


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


def _stop(server: subprocess.Popen[bytes]) -> None:
    """At once and without a last checkpoint: nobody reads this database again."""
    server.send_signal(signal.SIGQUIT)
    try:
        server.wait(timeout=20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
