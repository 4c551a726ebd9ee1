"""A private pgbouncer for tests, in transaction mode with few connections: clients share them in turn."""

import os
import pwd
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa

from tests.servers.process import NotStarted, ServerProcess, free_port

_CONNECTIONS = 2  # to the server
_CONFIG = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
max_client_conn = 200
"""


@contextmanager
def pgbouncer(address: str) -> Iterator[str]:
    """The address of the same database through pgbouncer. Raises NotStarted where it cannot run."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    program = shutil.which("pgbouncer", path=path)
    if program is None:
        raise NotStarted("no pgbouncer here: tools/setup.sh test installs one")
    url, own_port = sa.make_url(address), free_port()
    folder = Path(tempfile.mkdtemp(prefix="imprint-pgbouncer-"))
    try:
        config = folder / "pgbouncer.ini"
        config.write_text(
            _CONFIG.format(host=url.host, port=url.port, user=url.username, own_port=own_port, connections=_CONNECTIONS)
        )
        process = ServerProcess([program, *_not_as_root(folder), str(config)], log=folder / "log", cwd=folder)
        try:
            process.wait_until(lambda: _answers(own_port), 20)
            yield url.set(port=own_port).render_as_string(hide_password=False)
        finally:
            process.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _not_as_root(folder: Path) -> list[str]:
    """pgbouncer refuses root."""
    if os.geteuid() != 0:
        return []
    user = next(name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()})
    shutil.chown(folder, user)
    return ["-u", user]


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
