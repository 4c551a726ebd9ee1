"""Starts `python -m MODULE` and `python FILE.py` by forking a process that has imported the large libraries already.

A worker that trains imports torch, diffusers and transformers: four seconds of a core each time, in a suite that starts
and kills hundreds of workers. The launcher imports them once for each test process. Of Imprint it imports what reads no
settings, as Celery's pool does before it forks; every program imports `celeryconfig`, `tasks`, `cli` and `web` itself
and reads its own settings. Tests of the start itself (the stack, the images, systemd, the commands of the README) run
a fresh interpreter.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The launcher imports these, and what a child of it finds that the programs below import besides.
_SHARED = ("jobs.service", "training.backends.local")
# `celery` reads every command of its own, with click_repl and Flower: half of what a command of ours takes.
_PROGRAMS = (
    "celery.bin.celery", "tasks.app", "tasks.stages", "tasks.sweeps", "tasks.workers.worker", "cli.main", "web.app",
)  # fmt: skip
# Each program's own: what reads settings when it is imported, and what is beside it.
_OWN = {"celeryconfig", "cli", "tasks", "web", "__main__"}
_MAX_REQUEST = 1 << 20


class Process:
    """A started program, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, args: Sequence[str], status: socket.socket) -> None:
        self.args = args
        self.returncode: int | None = None
        self._status = status
        self.pid = int(self._line())

    def poll(self) -> int | None:
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._status.settimeout(timeout)
            with suppress(BlockingIOError, TimeoutError):
                self.returncode = os.waitstatus_to_exitcode(int(self._line()))
                self._status.close()
        return self.returncode

    def _line(self) -> str:
        line = self._status.recv(64).decode()
        if not line:
            raise RuntimeError(f"the launcher ended before {self.args!r} did")
        return line


class Launcher:
    """The process that forks; one for each test process. It ends when its socket closes."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Torch reads these when it is imported. One thread also keeps the fork safe.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.launcher", str(theirs.fileno())],
            cwd=ROOT,
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()

    def fileno(self) -> int:
        """The socket that takes requests, for a program of the test's that sends them itself (client.py)."""
        return self._requests.fileno()

    def start(
        self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None, stdout: int, stderr: int
    ) -> Process:
        """`argv` is a module or a file `*.py`, and its arguments. The program leads a session of its own."""
        request = {"argv": list(argv), "cwd": str(cwd), "env": dict(os.environ if env is None else env)}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(self._requests, [json.dumps(request).encode()], [stdout, stderr, theirs.fileno()])
        theirs.close()
        return Process(argv, ours)


@cache
def launcher() -> Launcher:
    return Launcher()


def run(
    argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], folder: Path, timeout: float
) -> "subprocess.CompletedProcess[str]":
    """As `subprocess.run` with captured output; `folder` takes the output while the program runs."""
    names = [folder / f"{time.monotonic_ns()}.{stream}" for stream in ("stdout", "stderr")]
    with names[0].open("wb") as out, names[1].open("wb") as err:
        process = launcher().start(argv, cwd=cwd, env=env, stdout=out.fileno(), stderr=err.fileno())
    try:
        code = process.wait(timeout)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    texts = [name.read_text() for name in names]
    for name in names:
        name.unlink()
    return subprocess.CompletedProcess(list(argv), code, *texts)


# ---- in the launcher's process ----


def _imported_by_programs() -> list[str]:
    """Names of the modules that the programs import, but for `_OWN`, from a child that imports all of it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        before = set(sys.modules)
        for name in _PROGRAMS:
            import_module(name)
        names = [name for name in list(sys.modules) if name not in before and name.partition(".")[0] not in _OWN]
        with os.fdopen(writing, "w") as out:
            json.dump(names, out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as found:
        text = found.read()
    os.waitpid(child, 0)
    return list(json.loads(text)) if text else []


def _serve(requests: socket.socket) -> list[str] | None:
    """Fork once for each request. Returns in each child with its `argv`, and with None at the end of the requests."""
    while True:
        data, fds, _, _ = socket.recv_fds(requests, _MAX_REQUEST, 3)
        if not data:
            return None
        if os.fork() == 0:
            requests.close()
            return _keep(json.loads(data), *fds)
        for fd in fds:
            os.close(fd)


def _keep(request: dict[str, object], stdout: int, stderr: int, status: int) -> list[str]:
    """Fork the program, report its process id and its exit status. Returns in the program."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ready, go = os.pipe()
    pid = os.fork()
    if pid:
        os.close(ready)
        with socket.socket(fileno=status) as content, suppress(OSError):
            content.send(str(pid).encode())
            os.close(go)
            content.send(str(os.waitpid(pid, 0)[1]).encode())
        os._exit(0)
    os.setsid()
    os.close(go)
    os.read(ready, 1)  # until the test knows the process id
    for fd, wanted in ((stdout, 1), (stderr, 2)):
        os.dup2(fd, wanted)
    for fd in {ready, stdout, stderr, status} - {1, 2}:
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]
    os.chdir(str(request["cwd"]))
    also = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:1] = [str(request["cwd"]), *also]
    if threads := os.environ.get("OMP_NUM_THREADS"):  # this process's torch has read the launcher's
        sys.modules["torch"].set_num_threads(int(threads))
        sys.modules["training.engine.cohorts.assignment"].__dict__["THREADS"] = int(threads)
    return list(request["argv"])  # type: ignore[call-overload]


def _main() -> list[str] | None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name in _SHARED:
        import_module(name)
    for name in _imported_by_programs():
        with suppress(ImportError):
            import_module(name)
    from core.settings import settings

    assert settings.cache_info().currsize == 0, "the programs would have the launcher's settings"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a keeper
    gc.freeze()
    return _serve(requests)


def _run_program(argv: list[str]) -> None:
    """Run the program and exit as the interpreter does, except that it frees nothing.

    To free every module that the launcher has imported takes half a second of a core, more than most commands do.
    """
    sys.argv = argv
    code: object = None
    try:
        if argv[0].endswith(".py"):
            runpy.run_path(argv[0], run_name="__main__")
        else:
            runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined] # waits for threads that are no daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__" and (argv := _main()):
    _run_program(argv)
