"""The outbox is sent after a commit by the process that committed: nobody has to ask for it."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from core.clock import utcnow
from core.settings import Settings
from jobs import service
from jobs.notices.outbox_sender import OutboxSender
from jobs.owners import accounts
from jobs.services import Services
from notifications import outbox
from tasks.relay import relay
from tests.contract.jobs import request
from tests.outbox import due
from tests.servers.launcher import run
from tests.site import MASCOT, ROOT

_FLUSH_S = 60


def sending(settings: Settings, send: object) -> Services:
    services = Services(settings, send)  # type: ignore[arg-type]
    accounts.grant(services, "ada", 100_000)
    return services


def flushed(services: Services) -> bool:
    assert services.outbox_sender is not None
    return services.outbox_sender.flush(_FLUSH_S)


def test_a_commit_with_a_message_sends_and_a_rollback_does_not(settings: Settings) -> None:
    rounds: list[int] = []
    services = sending(settings, lambda _: rounds.append(1) is None)
    with suppress(KeyError), services.database.writing() as session:
        outbox.put(session, "cleanup", job_id=None, payload={})
        raise KeyError
    with services.database.writing():
        pass  # a transaction without a message
    assert services.outbox_sender is not None
    assert services.outbox_sender.wakes == 0
    with services.database.writing() as session:
        outbox.put(session, "cleanup", job_id=None, payload={})
    assert flushed(services)
    assert rounds == [1]


def test_the_end_of_a_notice_sends_the_next_one_of_its_job(settings: Settings) -> None:
    rounds: list[int] = []
    services = sending(settings, lambda _: rounds.append(1) is None)
    with services.database.writing() as session:
        notice, cleanup = (outbox.put(session, kind, job_id="job", payload={}) for kind in ("notice", "cleanup"))
    assert flushed(services)
    with services.database.writing() as session:
        outbox.mark_sent(session, cleanup)  # no other message waits for this one
    assert flushed(services)
    assert rounds == [1]
    with services.database.writing() as session:
        outbox.mark_sent(session, notice)
    assert flushed(services)
    assert rounds == [1, 1]


def test_two_hundred_jobs_at_once_are_launched_once_each(settings: Settings) -> None:
    launched: list[str | None] = []

    def send(services: Services) -> bool:
        with services.database.writing() as session:
            launched.extend(
                one.job_id for one in outbox.claim(session, utcnow(), ["launch"], 1000, lease=timedelta(hours=1))
            )
        return True

    services = sending(settings.model_copy(update={"admission_floor": 200}), send)
    with ThreadPoolExecutor(8) as pool:
        views = list(pool.map(lambda seed: service.submit(services, request(services, seed=seed)), range(200)))
    assert flushed(services)
    assert sorted(map(str, launched)) == sorted(view.job_id for view in views)


@pytest.mark.usefixtures("no_broker")
def test_a_broker_that_is_away_keeps_nobody_waiting_and_loses_nothing(settings: Settings) -> None:
    entered, released = threading.Event(), threading.Event()

    def send(services: Services) -> bool:
        entered.set()
        assert released.wait(_FLUSH_S)
        return relay(services)

    services = sending(settings, send)
    first = service.submit(services, request(services, seed=1)).job_id
    assert entered.wait(_FLUSH_S)
    second = service.submit(services, request(services, seed=2)).job_id  # while the sender waits
    released.set()
    assert flushed(services)
    assert services.outbox_sender is not None
    assert not services.outbox_sender.has_sent_all
    with services.database.reading() as session:
        assert [message.job_id for message in due(session, utcnow(), ["launch"])] == [first, second]


def test_the_thread_outlives_every_error() -> None:
    rounds: list[int] = []

    def send() -> bool:
        rounds.append(1)
        raise ValueError("of any kind")

    sender = OutboxSender(send)
    for count in (1, 2):
        sender.wake()
        assert sender.flush(_FLUSH_S)
        assert len(rounds) == count


_FORK = """
import os
from jobs.services import send_outbox_with, services
from notifications import outbox

def put():
    with services().database.writing() as session:
        outbox.put(session, "cleanup", job_id=None, payload={})

send_outbox_with(lambda services: print("sent", os.getpid(), flush=True) is None)
put()
assert services().outbox_sender.flush(60)
child = os.fork()
put()
assert services().outbox_sender.flush(60)
if child:
    print("pids", os.getpid(), child, flush=True)
    assert os.waitpid(child, 0)[1] == 0
else:
    os._exit(0)
"""


def test_a_forked_child_sends_by_itself(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORK], cwd=ROOT, env={"IMPRINT_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    lines = [line.split() for line in done.stdout.splitlines()]
    [(parent, child)] = [line[1:] for line in lines if line[0] == "pids"]
    assert sorted(line[1] for line in lines if line[0] == "sent") == sorted([parent, parent, child])


_POOL_CHILD = """
import os
import tasks.workers.worker
from celery.concurrency.prefork import process_destructor
from jobs.services import send_outbox_with, services
from notifications import outbox

services().database  # migrated before the fork, as a worker does it
services().database.close()
send_outbox_with(lambda services: print("sent", os.getpid(), flush=True) is None)
child = os.fork()
if child:
    print("child", child, flush=True)
    assert os.waitpid(child, 0)[1] == 0
else:
    with services().database.writing() as session:
        outbox.put(session, "cleanup", job_id=None, payload={})
    process_destructor(os.getpid(), 0)  # what Celery calls last in a child of a prefork pool, which runs no atexit
    os._exit(0)
"""


def test_a_child_of_a_prefork_pool_that_ends_sends_first(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _POOL_CHILD], cwd=ROOT, env={"IMPRINT_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    lines = dict(line.split() for line in done.stdout.splitlines())
    assert lines["sent"] == lines["child"]


def test_a_process_that_ends_at_once_sends_first(tmp_path: Path) -> None:
    code = _FORK.split("child =")[0].replace("assert services().outbox_sender.flush(60)\n", "")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"IMPRINT_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("sent ")


_LAUNCHED = sa.text("SELECT count(*) FROM outbox_message WHERE kind = 'launch' AND sent_at IS NOT NULL")


@pytest.mark.parametrize(("broker", "sent"), [("memory://", 1), ("redis://127.0.0.1:1/0", 0)])
def test_a_command_sends_what_it_has_written_or_says_that_it_waits(tmp_path: Path, broker: str, sent: int) -> None:
    environment = {
        "IMPRINT_HOME": str(tmp_path), "IMPRINT_BROKER_URL": broker, "IMPRINT_RESULT_URL": "cache+memory://",
        "PATH": "/usr/bin:/bin",
    }  # fmt: skip
    submit = ["submit", str(MASCOT), "--trigger", "imp", "--resolution", "64", "--max-steps", "2"]
    for command in (["grant", "me", "1000"], submit):
        imprint = ["celery", "-A", "tasks.app", "imprint", *command]
        done = run(imprint, cwd=ROOT, env=environment, folder=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr
    services = Services(Settings(_env_file=None, home=tmp_path))
    with services.database.reading() as session:
        assert session.execute(_LAUNCHED).scalar_one() == sent
    assert done.stderr.count("No broker answers") == 1 - sent
    services.database.close()
