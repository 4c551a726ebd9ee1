"""The outbox is sent after a commit by the process that committed: nobody has to ask for it."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from core.clock import utcnow
from core.settings import Settings
from jobs import accounts, service
from jobs.outbox_sender import OutboxSender
from jobs.services import Services
from notifications import outbox
from tasks.relay import CLAIM, relay
from tests.contract.jobs import request
from tests.site import ROOT

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
    services = sending(settings, lambda _: rounds.append(1))
    with suppress(KeyError), services.database.writing() as session:
        outbox.put(session, "cleanup", job_id=None, payload={})
        raise KeyError
    with services.database.writing():
        pass  # a transaction without a message
    assert services.outbox_sender is not None
    assert not services.outbox_sender.is_awake
    with services.database.writing() as session:
        outbox.put(session, "cleanup", job_id=None, payload={})
    assert flushed(services)
    assert rounds == [1]


def test_the_end_of_a_notice_sends_the_next_one_of_its_job(settings: Settings) -> None:
    rounds: list[int] = []
    services = sending(settings, lambda _: rounds.append(1))
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

    def send(services: Services) -> None:
        with services.database.writing() as session:
            launched.extend(one.job_id for one in outbox.claim(session, utcnow(), ["launch"], 1000, lease=CLAIM))

    services = sending(settings, send)
    with ThreadPoolExecutor(8) as pool:
        views = list(pool.map(lambda seed: service.submit(services, request(services, seed=seed)), range(200)))
    assert flushed(services)
    assert sorted(map(str, launched)) == sorted(view["job_id"] for view in views)


@pytest.mark.usefixtures("no_broker")
def test_a_broker_that_is_away_keeps_nobody_waiting_and_loses_nothing(settings: Settings) -> None:
    entered, released = threading.Event(), threading.Event()

    def send(services: Services) -> None:
        entered.set()
        assert released.wait(_FLUSH_S)
        relay(services)

    services = sending(settings, send)
    first = service.submit(services, request(services, seed=1))["job_id"]
    assert entered.wait(_FLUSH_S)
    second = service.submit(services, request(services, seed=2))["job_id"]  # while the sender waits
    released.set()
    assert flushed(services)
    with services.database.reading() as session:
        assert [message.job_id for message in outbox.due(session, utcnow(), ["launch"])] == [first, second]


def test_the_thread_outlives_every_error() -> None:
    rounds: list[int] = []

    def send() -> None:
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

send_outbox_with(lambda services: print("sent", os.getpid(), flush=True))
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


def test_a_process_that_ends_at_once_sends_first(tmp_path: Path) -> None:
    code = _FORK.split("child =")[0].replace("assert services().outbox_sender.flush(60)\n", "")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"IMPRINT_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("sent ")
