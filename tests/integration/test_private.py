"""The home folder is its user's alone, however Imprint is run."""

import os
import stat
import sys
from pathlib import Path

import pytest

from cli.stack import alone
from core.private import is_private, make_private
from tests.servers.process import ServerProcess
from tests.site import until

ROOT = Path(__file__).resolve().parents[2]
CELERY = ["-m", "celery", "-A", "tasks.app"]
# Every process of the service, and a file of the home folder that it writes first. The stack starts these processes.
WAYS = {
    "worker": ([*CELERY, "worker", "-P", "threads", "-Q", "io", "--without-gossip", "--without-mingle"], "imprint.db"),
    "beat": ([*CELERY, "beat", "--loglevel", "WARNING"], "run"),
    "web": (["-m", "web"], "web.key"),
    "command": ([*CELERY, "imprint", "list"], "imprint.db"),
    "ingress": ([*CELERY, "imprint", "ingress"], ""),
    "back-up": ([*CELERY, "imprint", "backup", "{home}/../copy"], "imprint.db"),
}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_that_others_could_read_is_closed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    home.chmod(0o755)
    assert not is_private(home)
    make_private(home)
    assert (mode(home), is_private(home)) == (0o700, True)


def test_the_stack_and_the_demo_close_it(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    with alone(home):
        assert mode(home) == 0o700


@pytest.mark.parametrize("way", WAYS)
def test_every_process_closes_it_and_writes_private_files(tmp_path: Path, way: str) -> None:
    arguments, first = WAYS[way]
    home = tmp_path / "home"
    home.mkdir(mode=0o755)  # as an older version made it
    home.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IMPRINT_")}
    environment |= {"IMPRINT_HOME": str(home), "IMPRINT_BROKER_URL": "redis://127.0.0.1:1/0", "IMPRINT_WEB_PORT": "0"}
    process = ServerProcess(
        ["/bin/sh", "-c", 'umask 022; exec "$@"', "sh", sys.executable, *(one.format(home=home) for one in arguments)],
        log=tmp_path / "log", cwd=ROOT, env=environment,
    )  # fmt: skip
    try:
        until(lambda: not process.alive or bool(first and (home / first).exists()), 60, f"{way} begins")
        assert mode(home) == 0o700, process.tail()
        if way in ("command", "ingress"):
            return  # these write only into the home folder
        for path in (*home.rglob("*"), *(tmp_path / "copy").rglob("*")):
            assert not mode(path) & 0o077, path
    finally:
        process.end(kill=True)
