"""A whole Imprint of a test's own: a home in a temporary folder, servers, real worker processes, and ways to look."""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import httpx2
from celery import Celery
from PIL import Image, ImageDraw

from core.brokers.queues import TRAIN, WORK
from core.settings import Settings
from jobs import service
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import intake
from tasks.workers.kinds import KINDS
from tests.servers.gated_s3 import gated_s3
from tests.servers.launcher import run
from tests.servers.postgres import new_database, postgres_server
from tests.servers.process import Server, ServerProcess, free_port
from tests.servers.rabbitmq import rabbitmq_server
from tests.servers.redis import RedisServer, redis_server

View = dict[str, Any]  # a job as applications see it: JSON
ROOT = Path(__file__).resolve().parent.parent
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "subjects"
MASCOT = ROOT / "demo" / "pictures"

RECIPE: dict[str, Any] = {"base_model": "sd15", "resolution": 64, "trigger_word": "imp", "seed": 7, "max_steps": 2}


class Site:
    """One installation. `environment` is added to what its processes get."""

    def __init__(self, folder: Path, base_model: Path, broker_url: str, **environment: str) -> None:
        self.folder = folder
        self.environment = {
            "IMPRINT_HOME": str(folder / "home"),
            "IMPRINT_BROKER_URL": broker_url,
            "IMPRINT_BASE_MODELS": json.dumps({"sd15": str(base_model)}),
            "IMPRINT_LEASE_S": "2",
            "IMPRINT_SWEEP_S": "1",
            "IMPRINT_RETRY_BASE_S": "0.2",
            "IMPRINT_FETCH_PATIENCE_S": "2",
            "IMPRINT_RELAUNCH_AFTER_S": "20",
            "IMPRINT_IO_CONCURRENCY": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            **environment,
        }
        named = {key.removeprefix("IMPRINT_").lower(): value for key, value in self.environment.items()}
        fields: dict[str, Any] = {
            key: json.loads(value) if value[:1] in ("{", "[") else value
            for key, value in named.items()
            if key in Settings.model_fields
        }
        self.settings = Settings(_env_file=None, **fields)
        self.services = Services(self.settings)
        results = broker_url if broker_url.startswith("redis") else f"db+{self.settings.database}"
        result_url = self.environment.get("IMPRINT_RESULT_URL", results)
        # An application that does not have our code: a broker's address and the names of our tasks.
        self.application = Celery("application", broker=broker_url, backend=result_url)
        self.fetches_apart = False
        self.fresh = False  # a new interpreter for each process, with a command line of its own
        self.processes: dict[str, ServerProcess] = {}
        self.broker: Server | None = None
        self.redis: RedisServer | None = None
        self.web_url = ""

    # ---- processes ----

    def celery(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", "tasks.app", *arguments]

    def start(self, name: str, *, wait: bool = True, **environment: str) -> ServerProcess:
        """Start `io`, `fetch`, `train`, `draw`, `beat`, `web` (or a second one: `io-2`), and wait until it is ready."""
        kind = name.split("-")[0]
        if kind == "web":
            return self._start_web(name, **environment)
        arguments = ["beat", "--loglevel", "WARNING", "-s", str(self.folder / f"{name}.schedule")]
        if kind != "beat":
            made = KINDS[kind]
            if kind == "io" and not self.fetches_apart:
                # One process less, where a test is about something else. A site with `fetch` has the stack's layout.
                made = replace(made, queues=WORK)
            elif kind == "train":  # drawing has a worker of its own, as on a machine without a GPU
                made = replace(made, queues=tuple(name for name in made.queues if name.startswith(TRAIN)))
            arguments = made.arguments("INFO", int(self.environment["IMPRINT_IO_CONCURRENCY"]), f"{name}@test")
        mark = self._log_size(name)
        surroundings = self.surroundings(**environment)
        command = self.celery(*arguments)
        process = ServerProcess(command, log=self.log(name), cwd=ROOT, env=surroundings, fresh=self.fresh)
        self.processes[name] = process
        if wait:
            self._wait_ready(name, mark)
        return process

    def start_together(self, *names: str) -> None:
        """Start all of them, and then wait until each is ready."""
        marks = {name: self._log_size(name) for name in names}
        for name in names:
            self.start(name, wait=False)
        for name, mark in marks.items():
            self._wait_ready(name, mark)

    def _log_size(self, name: str) -> int:
        log = self.log(name)
        return log.stat().st_size if log.exists() else 0

    def _wait_ready(self, name: str, mark: int) -> None:
        """Wait until the worker says, after `mark` bytes of its log, that it is ready; beat says nothing."""
        process, log = self.processes[name], self.log(name)
        if name.split("-")[0] in ("io", "fetch", "train", "draw"):
            until(lambda: b" ready." in log.read_bytes()[mark:] or not process.alive, 90, f"{name} ready")
            assert process.alive, log.read_text()

    def _start_web(self, name: str, **environment: str) -> ServerProcess:
        """The HTTP API; a second start after a kill is on the same port."""
        if not self.web_url:
            self.web_url = f"http://127.0.0.1:{free_port()}"
        surroundings = self.surroundings(IMPRINT_WEB_PORT=self.web_url.rpartition(":")[2], **environment)
        argv = [sys.executable, "-m", "web"]
        process = ServerProcess(argv, log=self.log(name), cwd=ROOT, env=surroundings, fresh=self.fresh)
        self.processes[name] = process
        process.wait_until(self._web_answers, 90)
        return process

    def _web_answers(self) -> bool:
        try:
            return httpx2.get(f"{self.web_url}/healthz", timeout=5, trust_env=False).status_code == 200
        except httpx2.TransportError:
            return False

    def surroundings(self, **environment: str) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("IMPRINT_")}
        return {**clean, **self.environment, **environment}

    def log(self, name: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{name}.log"

    def kill(self, name: str) -> None:
        """kill -9 of the whole process group: a machine that loses its power."""
        self.processes.pop(name).end(kill=True)

    def stop(self, name: str, timeout_s: float = 60) -> int | None:
        """SIGTERM, and wait for its end; the exit code."""
        process = self.processes.pop(name)
        process.end(timeout_s=timeout_s)
        return process.returncode

    def end(self) -> None:
        for name in list(self.processes):
            self.kill(name)
        self.services.database.close()
        gc.collect()  # Celery's results say farewell to their store when they are thrown away: now, while it is there

    def imprint(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run `celery -A tasks.app imprint …` as an operator would."""
        done = self.command("imprint", *arguments)
        assert not check or done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done

    def command(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of Celery in this installation, `celery -A tasks.app …`."""
        argv, surroundings = self.celery(*arguments), self.surroundings(**environment)
        self.folder.mkdir(parents=True, exist_ok=True)
        if argv[:2] == [sys.executable, "-m"] and not self.fresh:
            return run(argv[2:], cwd=ROOT, env=surroundings, folder=self.folder, timeout=240)
        return subprocess.run(
            argv, cwd=ROOT, env=surroundings, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
            check=False,
        )  # fmt: skip

    # ---- jobs ----

    def grant(self, owner_id: str, amount: int = 10_000) -> None:
        accounts.grant(self.services, owner_id, amount, key=f"grant {owner_id}")

    def pictures(self, owner_id: str, count: int = 6) -> list[str]:
        """Ids of stored mascot pictures."""
        files = sorted(MASCOT.glob("*.png"))[:count]
        return [intake.store_picture(self.services, owner_id, "mascot", file.read_bytes()) for file in files]

    def send(self, **arguments: Any) -> View:
        """What an application does: send `train_lora` by name, and get the job's public view."""
        owner_id = arguments.setdefault("owner_id", "owner")
        arguments.setdefault("images", None)
        if arguments["images"] is None:
            arguments["images"] = self.pictures(owner_id)
        request = {"subject_id": "mascot", **RECIPE, **arguments}
        sent = self.application.send_task("imprint.train_lora", kwargs=request, queue="io")
        try:
            view: View = sent.get(timeout=60)
        finally:
            sent.forget()
            sent.backend = None  # or its destructor asks the broker, which a test may have ended by then
        return view

    def view(self, job_id: str) -> View:
        return service.get(self.services, job_id).to_dict()

    def wait(self, job_id: str, wanted: Callable[[View], bool] | None = None, timeout_s: float = 120) -> View:
        """The view once `wanted` holds; by default once the job is final."""
        wanted = wanted or (lambda view: view["status"] in ("ready", "failed", "cancelled"))
        try:
            until(lambda: wanted(self.view(job_id)), timeout_s, f"{job_id}")
        except AssertionError as error:
            logs = "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log")))
            raise AssertionError(f"{error}: {self.view(job_id)}\n{logs}") from None
        return self.view(job_id)

    def executions(self, job_id: str) -> list[str]:
        """The stages that the job went through, with retries, in order."""
        return [event.data.get("stage", "") for event in service.events(self.services, job_id)]

    def left_behind(self, job_id: str) -> list[str]:
        """Objects in the store and files in the work folders that still belong to this job."""
        found = [key for prefix in ("checkpoints/", "outputs/", "models/") for key in self.services.store.list(prefix)]
        work = self.settings.home / "work"
        found += [str(path) for path in work.rglob("*")] if work.is_dir() else []
        return [name for name in found if job_id in name]


def until(condition: Callable[[], bool], timeout_s: float, what: str, *, every_s: float = 0.02) -> None:
    """Poll until `condition` holds; AssertionError after `timeout_s`.

    The longer it has waited, the longer it sleeps, up to a fifth of a second: what is waited for needs the core.
    """
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < timeout_s, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(max(every_s, min(0.2, waited / 10)))


@contextmanager
def site(
    folder: Path,
    base_model: Path,
    *,
    start: tuple[str, ...] = ("io", "train", "beat"),
    broker: Literal["redis", "rabbitmq"] = "redis",
    database: Literal["sqlite", "postgresql"] = "sqlite",
    store: Literal["local", "s3"] = "local",
    kind: type[Site] = Site,
    redis_password: str | None = None,
    **environment: str,
) -> Iterator[Site]:
    """A running site with servers of its own: its broker is at `site.broker`, if that is Redis at `site.redis` too."""
    with ExitStack() as stack:
        server: Any
        if broker == "redis":
            server = stack.enter_context(redis_server(folder / broker, password=redis_password))
        else:
            server = stack.enter_context(rabbitmq_server(folder / broker))
        if database == "postgresql":
            environment |= {"IMPRINT_DATABASE_URL": new_database(stack.enter_context(postgres_server()))}
        if store == "s3":
            environment |= stack.enter_context(gated_s3()).environment
        made = kind(folder, base_model, server.url, **environment)
        made.broker, made.redis = server, server if isinstance(server, RedisServer) else None
        stack.callback(made.end)
        made.fetches_apart = "fetch" in start
        made.services.database.migrate()
        made.start_together(*start)
        yield made


def make_base(folder: Path) -> Path:
    """Make the tiny base model at `folder`, in a process of its own; returns `folder`."""
    done = run(["training.tiny.base", str(folder)], cwd=ROOT, env=os.environ, folder=folder.parent, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


def drawing(path: Path, number: int, size: int = 200) -> Path:
    """A picture unlike its neighbours by number: big shapes in places of their own."""
    picture = Image.new(
        "RGB", (size, size), (40 + 20 * (number % 9), 220 - 17 * (number % 11), 90 + 13 * (number % 12))
    )
    draw = ImageDraw.Draw(picture)
    x, y = (number * 37) % (size // 2), (number * 53) % (size // 2)
    draw.ellipse((x, y, x + size // 3, y + size // 3), fill=(250, 240 - 9 * (number % 20), 30))
    draw.rectangle((size - x - 40, y, size - x - 10, size - 20), fill=(20, 30, 200 - 7 * (number % 20)))
    draw.line((0, x, size, size - y), fill=(0, 0, 0), width=5)
    picture.save(path)
    return path


__all__ = ["MASCOT", "PHOTOGRAPHS", "RECIPE", "ROOT", "RedisServer", "Site", "drawing", "make_base", "site", "until"]
