"""OpenStack Swift with its S3 API: an S3 server that minds signatures, checksums and conditions, without Docker.

Four processes, one device, one replica, in a folder of the test. Swift is no dependency of ours and wants an older
setuptools, so it lives in a virtual environment of its own, made by tools/swift.sh. The folder's file system must
have user xattrs (ext4, overlayfs, a new tmpfs).
"""

import os
import pwd
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.servers.process import NotStarted, ServerProcess, free_port
from tests.servers.s3 import S3Server

_KEY, _SECRET = "test:tester", "testing-secret"

_STORAGE = """
[DEFAULT]
devices = {folder}/devices
mount_check = false
swift_dir = {folder}
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
workers = 0
log_address = {folder}/no-syslog
fallocate_reserve = 0

[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
"""

_PROXY = """
[DEFAULT]
swift_dir = {folder}
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
workers = 0
log_address = {folder}/no-syslog

[pipeline:main]
pipeline = catch_errors healthcheck s3api tempauth copy slo dlo proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:healthcheck]
use = egg:swift#healthcheck

[filter:s3api]
use = egg:swift#s3api
location = us-east-1

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin

[filter:copy]
use = egg:swift#copy

[filter:slo]
use = egg:swift#slo

[filter:dlo]
use = egg:swift#dlo
"""

# Run by Swift's own Python, once for all three: the command-line builder would be nine processes.
_RINGS = """
import sys
from swift.common.ring import RingBuilder
for argument in sys.argv[1:]:
    name, port = argument.split("=")
    builder = RingBuilder(2, 1, 1)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1})
    builder.rebalance()
    builder.get_ring().save(name + ".ring.gz")
"""

_CONSTANTS = """
[swift-hash]
swift_hash_path_prefix = imprint
swift_hash_path_suffix = tests

[storage-policy:0]
name = default
default = yes
"""


@contextmanager
def swift_server(folder: Path) -> Iterator[S3Server]:
    """A running Swift in `folder`; ends with the block. Raises NotStarted, with the reason, where it cannot run."""
    tools = _installed()
    _check_xattrs(folder)
    with ExitStack() as stack:
        ports = {kind: free_port() for kind in ("account", "container", "object", "proxy")}
        _write_config(folder, ports)
        rings = [f"{kind}={port}" for kind, port in ports.items() if kind != "proxy"]
        _run([str(tools / "python"), "-c", _RINGS, *rings], folder)
        started = [(_start(tools, folder, kind), port) for kind, port in ports.items()]
        for process, _ in started:
            stack.callback(process.end, kill=True)
        for process, port in started:
            process.wait_until(lambda port=port: _listens(port), 60)  # type: ignore[misc]
        endpoint = f"http://127.0.0.1:{ports['proxy']}"
        started[-1][0].wait_until(lambda: _healthy(endpoint), 60)
        yield S3Server(endpoint, _KEY, _SECRET)


def _installed() -> Path:
    """The folder of Swift's programs, which set-up has made. Raises NotStarted."""
    tools = Path(__file__).parents[2] / ".cache" / "swift" / "venv" / "bin"
    if not (tools / "swift-proxy-server").is_file():
        raise NotStarted("Swift is not installed: tools/swift.sh does that, and make test calls it")
    return tools


def _run(argv: list[str], cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=280, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotStarted(f"{argv[0]}: {error}") from error
    if done.returncode:
        raise NotStarted(f"{argv[0]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")


def _check_xattrs(folder: Path) -> None:
    probe = folder / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.imprint", b"1")
    except OSError as error:
        raise NotStarted(f"the file system of {folder} has no user xattrs, which Swift needs") from error
    finally:
        probe.unlink()


def _write_config(folder: Path, ports: dict[str, int]) -> None:
    (folder / "devices" / "d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(_CONSTANTS)
    user = pwd.getpwuid(os.getuid()).pw_name
    for kind, port in ports.items():
        template = _PROXY if kind == "proxy" else _STORAGE
        values = {"folder": folder, "port": port, "kind": kind, "secret": _SECRET, "user": user}
        (folder / f"{kind}.conf").write_text(template.format(**values))


def _start(tools: Path, folder: Path, kind: str) -> ServerProcess:
    return ServerProcess(
        [str(tools / f"swift-{kind}-server"), str(folder / f"{kind}.conf"), "-v"],
        log=folder / f"{kind}.log",
        cwd=folder,
        env={**os.environ, "SWIFT_CONF_DIR": str(folder), "PYTHONWARNINGS": "ignore"},
    )


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _healthy(endpoint: str) -> bool:
    with suppress(URLError, OSError), urlopen(f"{endpoint}/healthcheck", timeout=2) as answer:  # noqa: S310
        return bool(answer.status == 200)
    return False
