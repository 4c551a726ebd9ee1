"""The whole stack on one machine: workers, beat, Flower, the HTTP API, and a broker if none is configured.

`python -m cli.stack` (`make up`) runs it in the foreground until Ctrl-C. The demo uses it as a context manager.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from cli import first_run
from cli.stack_members import Layout, Member
from core import essential
from core.brokers.embedded_broker import EmbeddedRedis, die_with_parent
from core.errors import BackendUnreachable, ImprintError
from core.private import UMASK, keep_private, make_private
from core.settings import Settings, settings
from jobs.services import services
from tasks.redis_rights import check_redis_rights

_STOP_TIMEOUT_S = 60.0
_RESTART_AFTER_S = 1.0
_LOCK = "stack.lock"
_NO_BASE_MODEL = (
    "No base model is on this machine: the first training downloads one, several gigabytes. For a look without that, "
    'stop and start again with the pocket model: IMPRINT_BASE_MODELS=\'{"sd15": "demo/pocket/model"}\' make up'
)
_ROOT = Path(__file__).resolve().parent.parent

log = logging.getLogger(__name__)


class Supervisor:
    """Starts the members, restarts those that die, and stops them in an order in which nothing is lost."""

    def __init__(self, configured: Settings, *, quiet: bool = False, flower: bool = True, web: bool = True) -> None:
        self._settings = configured
        self._quiet = quiet
        self._redis = EmbeddedRedis(configured) if configured.broker_url is None else None
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._restarting = threading.Lock()
        self.layout = Layout(configured, flower=flower, web=web)
        self.members = self.layout.members

    def start(self) -> None:
        """Start everything. Returns when the processes run; workers are ready a few seconds later."""
        self._settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._settings.log_dir.mkdir(parents=True, exist_ok=True)
        if self._redis is not None:
            self._redis.start()
        for member in self.members:
            self._launch(member)

    def _launch(self, member: Member) -> None:
        output = None
        if self._quiet:
            output = (self._settings.log_dir / f"{member.name}.log").open("ab")
        member.process = subprocess.Popen(
            [sys.executable, "-m", *member.command, *member.arguments],
            cwd=_ROOT,
            env={**os.environ, **member.environment, "IMPRINT_HOME": str(self._settings.home.resolve())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in the terminal reaches the stack only, which stops its members in order
            umask=UMASK,
            preexec_fn=die_with_parent,
        )
        if output is not None:
            output.close()

    def watch(self) -> None:
        """Restart members that die until `stop` is called. Returns when `stop` is done.

        It must not return earlier: `die_with_parent` sends the signal when the *thread* that started the child ends.
        """
        while not self._stopping.wait(_RESTART_AFTER_S):
            with self._restarting:
                if not self._stopping.is_set():
                    try:
                        self._restart_the_dead()
                    except Exception:  # for example a full disk: the next round tries again
                        log.exception("a process of the stack cannot be started again yet")
        self._stopped.wait()

    def _restart_the_dead(self) -> None:
        if self._redis is not None and not self._redis.alive():
            self._redis.start()
        for member in self.members:
            if member.process is not None and member.process.poll() is not None:
                self._launch(member)

    def stop(self) -> None:
        """Stop the API and beat, then the workers (trainings write a checkpoint), then Flower, and the broker last."""
        with self._restarting:  # otherwise a member that ends as asked might be restarted
            self._stopping.set()
        order = sorted(
            self.members,
            key=lambda member: ("web", "ingress", "beat", "train", "draw", "fetch", "io", "flower").index(member.name),
        )
        for member in order:
            _signal(member, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for member in order:
            if member.process is None:
                continue
            try:
                member.process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(member.process.pid, signal.SIGKILL)
                member.process.wait()
        if self._redis is not None:
            self._redis.stop()
        self._stopped.set()

    def __getitem__(self, name: str) -> Member:
        return next(member for member in self.members if member.name == name)


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """Allow one stack on a home folder at a time. Raises BackendUnreachable for the second."""
    make_private(home)
    with (home / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackendUnreachable(
                f"another stack already runs on {home}: stop it, or set IMPRINT_HOME to another folder"
            ) from None
        yield


@contextlib.contextmanager
def running(
    configured: Settings, *, flower: bool = True, web: bool = False, fresh: bool = False
) -> Iterator[Supervisor]:
    """Run a stack until the block ends. Its output goes to the log folder.

    `fresh` deletes all jobs, credits and files in the home folder first.
    """
    with alone(configured.home):
        if fresh:
            _empty(configured.home)
        stack = Supervisor(configured, quiet=True, flower=flower, web=web)
        try:
            stack.start()
            essential.start("stack", stack.watch, may_return=True)
            yield stack
        finally:
            stack.stop()


def _empty(home: Path) -> None:
    for entry in home.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink()


def _signal(member: Member, number: int) -> None:
    if member.process is not None:
        with contextlib.suppress(ProcessLookupError):
            member.process.send_signal(number)


def main() -> int:
    """Run the stack in the foreground until Ctrl-C or SIGTERM."""
    console = Console(stderr=True)
    try:
        keep_private(settings().home)
        services().check()
        if settings().broker_url is not None:
            from tasks.app import app  # reads the address, which the private Redis has only after its start

            check_redis_rights(app)
        with alone(settings().home):
            services().database.close()  # its schema is now up to date, before many processes use it
            _run(console)
    except (ImprintError, ValueError) as error:
        console.print(f"[red]{error}[/]", highlight=False)
        return 1
    return 0


def _run(console: Console) -> None:
    stack = Supervisor(settings())
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    try:
        stack.start()
        essential.start("stack", stack.watch, may_return=True)
        console.print("Starting …")
        is_ready = first_run.wait_until_ready(services(), stack.layout.web_url, asked)
        if not asked.is_set():
            _greet(console, stack, is_ready)
        asked.wait()
        console.print("Stopping: trainings write a checkpoint …")
    finally:
        stack.stop()
    console.print("Stopped. Nothing is lost: jobs continue at the next start.")


def _greet(console: Console, stack: Supervisor, is_ready: bool) -> None:
    """Say what runs, and last how to sign in."""
    state = "is up" if is_ready else "is starting, but not all of it answers yet"
    console.print(f"\n[bold]Imprint {state}.[/] Flower: {stack.layout.flower_url} (login {stack.layout.flower_login})")
    console.print(f"HTTP API: {stack.layout.web_url}/docs   Stop: Ctrl-C", highlight=False)
    console.print("Submit: [bold]celery -A tasks.app imprint submit FOLDER --trigger WORD --watch[/]")
    for note in stack.layout.notes:
        console.print(f"[yellow]{note}[/]", highlight=False)
    if not first_run.has_base_model(services()):
        console.print(f"[yellow]{_NO_BASE_MODEL}[/]", highlight=False, markup=True)
    if (secret := first_run.sign_in_link(services())) is not None:
        console.print("Sign in on the page, once and within an hour:", highlight=False)
        console.print(f"[bold]{stack.layout.web_url}/sign-in/{secret}[/]", highlight=False, soft_wrap=True)
    else:
        console.print("Sign in with: [bold]celery -A tasks.app imprint token create NAME --owner OWNER[/]")
        console.print(f"Page: [bold]{stack.layout.web_url}[/]", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
