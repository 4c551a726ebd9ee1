"""`imprint doctor`: checks an installation. Each line is ok or says what to do."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import disk_usage
from typing import Literal
from urllib.parse import urlsplit

import click
import httpx2
import sqlalchemy as sa

from cli.output.terminal import answers, out, print_json
from core.brokers import broker, embedded_broker, queues
from core.errors import ImprintError
from core.ids import new_id
from core.private import is_private
from jobs.services import Services, open_store, services
from storage.database import AWAY, Database, known_revisions
from tasks.app import app
from tasks.queue_types import eviction_policy
from tasks.redis_rights import check_redis_rights
from tasks.workers import fleet
from tasks.workers.device_check import FOLDER
from training.families.registry import BASE_MODELS, trained_here
from training.hub import is_hub_id

DISK_WANTED_BYTES = 10 * 2**30  # encodings alone take up to 10 GB; base models and LoRAs need more
CLOCK_OFF_S = 5.0  # Imprint goes by the database server's clock, but logs, Celery and signed addresses do not
_FLOWER_ANSWER_S = 2.0
_COLOURS = {"ok": "green", "note": "cyan", "todo": "red"}


@dataclass(frozen=True)
class CheckResult:
    """The result of one check. `todo`: the operator must do what the text says; `note`: nothing is broken."""

    name: str
    status: Literal["ok", "note", "todo"]
    text: str


Check = Callable[[Services], Iterator[CheckResult]]


@click.command()
@answers
def doctor(*, as_json: bool) -> None:
    """Check the installation: each line is ok or says what to do. Exit code 1 if something must be done."""
    findings = examine(services())
    if as_json:
        print_json({"ok": is_healthy(findings), "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            out.print(f"[{_COLOURS[finding.status]}]{finding.status:4}[/]  {finding.name}: ", end="", highlight=False)
            out.print(finding.text, markup=False, highlight=False, soft_wrap=True)
    sys.exit(0 if is_healthy(findings) else 1)


def is_healthy(findings: list[CheckResult]) -> bool:
    """Whether nothing must be done."""
    return all(finding.status != "todo" for finding in findings)


def examine(here: Services, checks: Sequence[Check] | None = None) -> list[CheckResult]:
    """Run every check. A check that raises an error is reported as `todo`, and the others still run."""
    findings: list[CheckResult] = []
    for check in CHECKS if checks is None else checks:
        try:
            findings += check(here)
        except Exception as error:  # noqa: BLE001 - a failing check must be reported
            reason = error.message if isinstance(error, ImprintError) else f"{type(error).__name__}: {str(error)[:300]}"
            findings.append(CheckResult(check.__name__.strip("_").replace("_", " "), "todo", reason))
    return findings


# ---- what the service needs --------------------------------------------------------------------------------


def _settings(here: Services) -> Iterator[CheckResult]:
    try:
        here.check()
    except ValueError as error:
        yield CheckResult("settings", "todo", str(error))
    else:
        yield CheckResult("settings", "ok", f"home folder {here.settings.home.resolve()}")
    home = here.settings.home
    if home.is_dir() and home.stat().st_uid == os.geteuid() and not is_private(home):
        yield CheckResult("settings", "todo", f"other users of this machine may read {home.resolve()}: chmod 700 it")


def _broker(here: Services) -> Iterator[CheckResult]:
    if not here.settings.broker_url and embedded_broker.address(here.settings) is None:
        yield CheckResult("broker", "todo", "no broker is set and no stack runs here: make up starts both")
        return
    try:
        broker.check(here.settings)
    except ValueError:
        return  # `_settings` has said it; a client waits a minute for such a broker
    try:
        check_redis_rights(app)
    except ValueError as error:
        yield CheckResult("broker", "todo", str(error))
        return
    found, address = fleet.inspect(), fleet.broker_address()
    if found.trouble:
        hint = fleet.UNTRUSTED if fleet.UNTRUSTED in found.trouble else "start it, or correct IMPRINT_BROKER_URL"
        yield CheckResult("broker", "todo", f"{address} does not answer: {hint}")
        return
    policy = eviction_policy(app)
    yield CheckResult("broker", "todo" if policy else "ok", f"{address}: {policy}" if policy else address)
    yield from _workers(here, found)


def _workers(here: Services, found: fleet.Fleet) -> Iterator[CheckResult]:
    """Whether each kind of queue has a worker. A remote backend may train in place of a local worker."""
    served = {queue for worker in found.workers for queue in worker.queues}
    lacking = [queue for queue in queues.WORK if queue not in served]
    trains = [queue for queue in served if queue.startswith("train.")]
    is_remote = here.settings.ai_toolkit_url is not None or here.settings.runpod_api_key is not None
    if lacking or not (trains or is_remote):
        missing = ", ".join(
            lacking if trains or is_remote else [*lacking, *(f"train.{family}" for family in trained_here())]
        )
        yield CheckResult("workers", "todo", f"no worker takes from {missing}: start the stack or a worker")
    else:
        yield CheckResult("workers", "ok", ", ".join(worker.worker for worker in found.workers))


def _flower(here: Services) -> Iterator[CheckResult]:
    url = here.settings.flower_url or f"http://127.0.0.1:{here.settings.flower_port}"
    try:
        answered = httpx2.get(f"{url.rstrip('/')}/healthcheck", timeout=_FLOWER_ANSWER_S, trust_env=False)
        is_there = answered.status_code == 200
    except httpx2.HTTPError:
        is_there = False
    if is_there:
        yield CheckResult("Flower", "ok", url)
    else:
        yield CheckResult("Flower", "note", f"does not answer at {url}; jobs run without it, and make up starts it")


def _database(here: Services) -> Iterator[CheckResult]:
    address = sa.make_url(here.settings.database)
    name = address.render_as_string(hide_password=True)
    if address.get_backend_name() == "sqlite" and not (address.database and Path(address.database).is_file()):
        text = f"{name} does not exist yet: celery -A tasks.app imprint migrate creates it"
        yield CheckResult("database", "todo", text)
        return
    database = Database(here.settings.database)  # not that of `services`, which updates the schema
    try:
        with database.engine.connect() as connection:
            revision, newest = database.revision(connection), known_revisions()
            yield _revision(name, revision, newest)
            if not database.is_sqlite:
                if connection.scalar(sa.text("SHOW transaction_read_only")) == "on":
                    text = f"{name} is read-only: IMPRINT_DATABASE_URL must name the server that takes writes"
                    yield CheckResult("database", "todo", text)
                yield _clock(connection)
            else:
                yield CheckResult("clock", "ok", "SQLite is on this machine and has its clock")
    except AWAY as error:
        text = f"{name} does not answer ({error}): start it, or set IMPRINT_DATABASE_URL"
        yield CheckResult("database", "todo", text)
    finally:
        database.close()


def _revision(name: str, revision: str | None, newest: list[str]) -> CheckResult:
    if revision == newest[0]:
        return CheckResult("database", "ok", f"{name}, at revision {revision}")
    if revision is not None and revision not in newest:
        return CheckResult(
            "database", "todo",
            f"{name} is at revision {revision}, which this Imprint does not know: install the newer Imprint here too",
        )  # fmt: skip
    return CheckResult(
        "database", "todo",
        f"{name} is at revision {revision or 'none'}, the newest is {newest[0]}: celery -A tasks.app imprint migrate",
    )  # fmt: skip


def _clock(connection: sa.Connection) -> CheckResult:
    before = time.time()
    there = float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    after = time.time()
    off = max(before - there, there - after, 0.0)
    if off > CLOCK_OFF_S:
        return CheckResult(
            "clock", "todo", f"{off:.0f} s off the database server's: synchronise both machines (chrony, timesyncd)"
        )
    return CheckResult("clock", "ok", f"{off:.1f} s off the database server's")


def _object_store(here: Services) -> Iterator[CheckResult]:
    name = here.settings.store
    key, data = f"doctor/{new_id('try')}", b"imprint doctor"
    try:
        store = open_store(here.settings)
        store.put(key, data)
        try:
            is_whole = store.get(key) == data
        finally:
            store.delete(key)
        is_gone = not store.exists(key)
    except ImprintError as error:
        text = f"{name}: {error.message}; check IMPRINT_STORE_URL and its credentials"
        yield CheckResult("object store", "todo", text)
        return
    if is_whole and is_gone:
        yield CheckResult("object store", "ok", f"{name}: wrote, read and deleted an object")
    else:
        fault = "returns other bytes than were written" if not is_whole else "keeps deleted objects"
        yield CheckResult("object store", "todo", f"{name} {fault}: use another store")


def _disk(here: Services) -> Iterator[CheckResult]:
    folders = {"home folder": here.settings.home.resolve()}
    if urlsplit(here.settings.store).scheme in ("", "file"):
        folders["object store's folder"] = Path(urlsplit(here.settings.store).path).resolve()
    seen = set()
    for name, folder in folders.items():
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if (device := there.stat().st_dev) in seen:
            continue
        seen.add(device)
        free = disk_usage(there).free
        text = f"{free / 2**30:.1f} GiB free for the {name} {folder}"
        if free >= DISK_WANTED_BYTES:
            yield CheckResult("disk", "ok", text)
        else:
            yield CheckResult("disk", "todo", f"{text}: free at least {DISK_WANTED_BYTES / 2**30:.0f} GiB")


# ---- what training needs -----------------------------------------------------------------------------------


def _base_models(here: Services) -> Iterator[CheckResult]:
    if find_spec("torch") is None:
        yield CheckResult("base models", "note", "not checked: torch is not installed, so this machine does not train")
        return
    here_too = {name: known.location for name, known in BASE_MODELS.items() if known.family in trained_here()}
    locations = here_too | here.settings.base_models
    for name, location in locations.items():
        yield _base_model(name, location)
    for name, path in here.settings.training_adapters.items():
        title = f"training adapter for {name}"
        if path.is_file():
            yield CheckResult(title, "ok", str(path))
        else:
            yield CheckResult(title, "todo", f"{path} does not exist: correct IMPRINT_TRAINING_ADAPTERS")


def _base_model(name: str, location: str) -> CheckResult:
    from training import families
    from training.families.weights import folders
    from training.families.weights.parts import locate

    title = f"base model {name}"
    known = BASE_MODELS.get(name)
    parts = families.find(known.family).parts if known else ()
    if not Path(location).expanduser().exists() and is_hub_id(location):
        if folders.cached(location, parts) is not None:
            return CheckResult(title, "ok", f"{location}, in the cache of the model hub")
        return CheckResult(title, "note", f"{location} is not on this machine: the first training on it downloads it")
    try:
        return CheckResult(title, "ok", str(locate(location, parts)))
    except ImprintError as error:
        return CheckResult(title, "todo", f"{error.message} (IMPRINT_BASE_MODELS)")


def _device(here: Services) -> Iterator[CheckResult]:
    if find_spec("torch") is None:
        yield CheckResult("device", "note", "torch is not installed: this machine does not train")
        return
    from training import self_check

    found = self_check.check_device(
        here.settings.home.resolve() / FOLDER, here.settings.device, asked_precision=here.settings.precision,
        deterministic=here.settings.deterministic,
    )  # fmt: skip
    yield CheckResult("device", "ok" if not found.faults else "todo", found.text)


CHECKS: tuple[Check, ...] = (_settings, _broker, _flower, _database, _object_store, _disk, _base_models, _device)
