"""Runs a script as a reader types it, in bash, with `celery` and `python` of this environment on its PATH."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.servers.launcher import launcher

_CLIENT = f'exec "{sys.executable}" -I -S "{Path(__file__).with_name("client.py")}"'
_COMMANDS = {
    "celery": f'{_CLIENT} celery "$@"\n',
    # A line of Python has no large imports: the interpreter itself is as fast.
    "python": f'case "$1" in -m) shift; {_CLIENT} "$@";; *.py) {_CLIENT} "$@";; esac\nexec "{sys.executable}" "$@"\n',
}


def run_script(
    script: str, *, cwd: Path, env: Mapping[str, str], fresh: bool = False, timeout_s: float = 240
) -> "subprocess.CompletedProcess[str]":
    """Run `script` until its first command that fails; its output and errors are in `stdout`, in their order.

    Each command is forked by the launcher; `fresh` starts a new interpreter for each, as a reader's shell does.
    """
    own = launcher()
    with TemporaryDirectory(prefix="imprint-commands-") as folder:
        if not fresh:
            _write_commands(Path(folder))
        path = os.pathsep.join([folder, str(Path(sys.executable).parent), os.environ["PATH"]])
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=cwd,
            env={**env, "PATH": path, "IMPRINT_TEST_LAUNCHER": str(own.fileno())},
            pass_fds=[own.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def _write_commands(folder: Path) -> None:
    for name, text in _COMMANDS.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}")
        (folder / name).chmod(0o755)
