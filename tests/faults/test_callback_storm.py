"""kill -9 of processes while callbacks are delivered: each arrives, at its own job, and each task has its result.

What is guaranteed differs (docs/brokers.md), and so does what is killed:

- RabbitMQ: every process, the application's worker and the broker too.
- Redis with IMPRINT_CALLBACK_CONFIRM_S: the same.
- Redis: Imprint's processes only. A worker that takes a message from Redis and is killed before it has noted that,
  loses it; so does a Redis that is killed before it has written it. The sweeps notice that for Imprint's own messages.

`make test` draws one of them, with twenty jobs; `make test-full` and `make faults-callbacks` have all, with two hundred
(CALLBACK_JOBS). One job of ten is trained. The others end without, because their delivery is what is tested.
"""

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery import chain
from sqlmodel import col

from jobs import service
from jobs.lifecycle import sweeps, transitions
from storage.tables.jobs import ACTIVE, Job, Stage, Status
from tests.contract.jobs import file_of
from tests.samples import FULL, SEED, sample
from tests.servers.shop import Shop
from tests.site import Site, site, until

JOBS = int(os.environ.get("CALLBACK_JOBS", "200" if FULL else "20"))
KILLS = JOBS // 20
TIME_S = 240 + 3 * JOBS
# How long a message of a killed worker waits in Redis.
VISIBILITY_S = 10

pytestmark = [pytest.mark.timeout(TIME_S + 300), pytest.mark.drawn]

READY, CANCELLED = ("use_lora", "notice"), ("failed", "failed_by_id", "notice")
OURS = ("io", "train", "beat")
EVERYTHING = (*OURS, "shop", "broker")
SETUPS: dict[str, tuple[Any, tuple[str, ...], dict[str, str]]] = {
    "rabbitmq": ("rabbitmq", EVERYTHING, {}),
    "redis, confirmed": ("redis", EVERYTHING, {"IMPRINT_CALLBACK_CONFIRM_S": "15"}),
    "redis": ("redis", OURS, {}),
}


@pytest.mark.parametrize("setup", sample(SETUPS, 1, "callback storm"))
def test_no_callback_is_lost_and_none_comes_to_another_job(setup: str, base_model: Path, tmp_path: Path) -> None:
    broker, killed, changed = SETUPS[setup]
    environment = {"IMPRINT_IO_CONCURRENCY": "2", "IMPRINT_VISIBILITY_TIMEOUT_S": str(VISIBILITY_S), **changed}
    dice = random.Random(SEED)
    with site(tmp_path, base_model, broker=broker, **environment) as running:
        running.grant("owner", 100_000)
        shop = Shop(running, visibility_timeout_s=VISIBILITY_S)
        shop.start()
        sent = send_all(shop)
        cancelled = {order for order in sent if dice.random() < 0.3}
        trained = set(dice.sample(sorted(sent.keys() - cancelled), JOBS // 10))
        often = [name for name in killed if name in ("io", "shop", "train")]
        with ending(running, cancelled, trained):
            for name in [*dice.sample(killed, len(killed)), *dice.choices(often, k=KILLS)]:
                time.sleep(dice.uniform(0.2, 2))
                kill(shop, name)
            try:
                until(lambda: not missing(shop, sent, cancelled), TIME_S, "every callback")
            except AssertionError as error:
                lost = missing(shop, sent, cancelled)
                raise AssertionError(f"{error}; seed {SEED}; missing: {lost[:20]}\n{shop.logs()}") from None
        for order, task_id in sent.items():
            result = shop.module.app.AsyncResult(task_id)
            until(result.ready, 60, f"the result of {order}")
            outcome = result.result
            view = outcome if order not in cancelled else running.view(outcome.args[1]["job_id"])
            assert view["subject_id"] == order
            assert view["status"] == ("cancelled" if order in cancelled else "ready")
            for fact in shop.written(order):
                assert fact["task"] in (CANCELLED if order in cancelled else READY)
                assert fact.get("subject_id", order) == order
                assert fact.get("task_id", task_id) == task_id
        assert sweeps.run_audit(running.services) == []
        shop.module.app.close()


def send_all(shop: Shop) -> dict[str, str]:
    """A chain for each order, with callbacks, error callbacks, and a task at the end; the ids of `imprint.lora`."""
    tasks, sent = shop.module, {}
    request = shop.request("owner")
    for order in (f"order-{number}" for number in range(JOBS)):
        on_end = {"task": "shop.notice", "queue": "shop", "kwargs": {"order": order}}
        lora = tasks.lora(**request | {"subject_id": order, "on_end": on_end})
        lora.set(link_error=[tasks.on_shop(one.s(order=order)) for one in (tasks.failed, tasks.failed_by_id)])
        sent[order] = chain(lora, tasks.on_shop(tasks.use_lora.s(order=order)))().parent.id
    return sent


@contextmanager
def ending(running: Site, cancelled: set[str], trained: set[str]) -> Iterator[None]:
    """End the accepted jobs one after another in a thread, without those that are trained, while the block runs."""
    over = threading.Event()

    def end_jobs() -> None:
        while not over.wait(0.1):
            active = service.jobs(running.services, owner_id="owner", active=True, limit=5 + len(trained))
            for view in [one for one in active if one.subject_id not in trained][:5]:
                if view.subject_id in cancelled:
                    service.cancel(running.services, view.job_id)
                else:
                    end_ready(running, view.job_id)

    thread = threading.Thread(target=end_jobs)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def end_ready(running: Site, job_id: str) -> None:
    """Settle a job without its training, unless the training was faster."""
    with running.services.database.writing() as session:
        at_settle = {"stage": Stage.SETTLE, "status": Status.TRAINING, **file_of(job_id)}
        active = sa.update(Job).where(col(Job.id) == job_id, col(Job.status).in_(ACTIVE))
        if session.connection().execute(active.values(at_settle)).rowcount:
            transitions.settle(session, job_id, running.settings)


def kill(shop: Shop, name: str) -> None:
    """kill -9, and a start at once."""
    if name == "broker":
        assert shop.site.broker is not None
        shop.site.broker.kill()
        shop.site.broker.start()
        return
    shop.site.kill(name)
    if name == "shop":
        shop.start()
    else:
        shop.site.start(name)


def missing(shop: Shop, sent: dict[str, str], cancelled: set[str]) -> list[tuple[str, str]]:
    """The orders and tasks that have not been written yet."""
    written = {(fact["order"], fact["task"]) for fact in shop.all_written()}
    expected = [(order, task) for order in sent for task in (CANCELLED if order in cancelled else READY)]
    return [one for one in expected if one not in written]
