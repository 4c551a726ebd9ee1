"""Every way to call `train_lora` in the table of docs/task.md, on both brokers: it works, or is refused by name."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from jobs import service
from jobs.owners import accounts
from tests.docs.pages import section, table_rows
from tests.samples import sample
from tests.site import RECIPE, ROOT, Site, View, site, until

NAMES = ("by name", "by position", "partial", "countdown, eta", "priority", "expires", "headers", "shadow", "task_id",
         "ignore_result")  # fmt: skip


@dataclass
class Door:
    """An installation on one broker, whose io worker starts after the first messages were sent."""

    site: Site
    broker: str
    late: AsyncResult  # sent first, with the lowest priority of Redis
    urgent: AsyncResult  # sent last, with the highest
    expired: AsyncResult  # its time was over before a worker was there

    @property
    def application(self) -> Celery:
        return self.site.application

    def request(self, **more: Any) -> dict[str, Any]:
        return {"owner_id": "owner", "subject_id": "mascot", "images": self.site.pictures("owner"), **RECIPE, **more}

    def send(self, args: Any = None, /, **options: Any) -> AsyncResult:
        options = {"kwargs": self.request(), **options} if args is None else {"args": args, **options}
        return self.application.send_task("imprint.train_lora", queue="io", **options)

    def jobs(self) -> int:
        return len(service.jobs(self.site.services, owner_id="owner", limit=1000))


def got(sent: AsyncResult, timeout_s: float = 60) -> View:
    view: View = sent.get(timeout=timeout_s)
    return view


def refused(sent: AsyncResult) -> dict[str, str]:
    """The faults of a refused request."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of a class that an application without our code lacks
        sent.get(timeout=60)
    assert type(caught.value).__name__ == "SpecInvalid"
    faults: dict[str, str] = caught.value.args[1]["faults"]
    return faults


@pytest.fixture(scope="module", params=sample(["redis", "rabbitmq"], 1, "brokers of call options"))
def door(request: pytest.FixtureRequest, base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp(request.param)
    with site(folder, base_model, start=(), broker=request.param, IMPRINT_RELAUNCH_AFTER_S="600") as made:
        made.grant("owner", 1_000_000)
        asked = Door(made, request.param, *([None] * 3))  # type: ignore[list-item]
        asked.late = asked.send(priority=9)
        asked.expired = asked.send(expires=0.5)
        over = time.monotonic() + 0.6
        asked.urgent = asked.send(priority=0)
        until(lambda: time.monotonic() > over, 60, "the message has expired")
        made.start("io")
        got(asked.late)
        got(asked.urgent)
        yield asked
        for sent in (asked.late, asked.urgent, asked.expired):
            sent.backend = None


def test_the_table_has_every_way_and_each_has_a_test() -> None:
    rows = table_rows(section(ROOT / "docs" / "task.md", "Ways to call it"))
    assert tuple(rows) == NAMES
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {name.replace(", ", "_").replace(" ", "_") for name in NAMES} <= tested


def test_by_name(door: Door) -> None:
    assert got(door.send())["status"] in ("pending", "training")


def test_by_position(door: Door) -> None:
    """One object is merged with the named arguments, which come first; everything else is refused by name."""
    before = door.jobs()
    view = got(door.send([door.request(seed=1)], kwargs={"seed": 2}))
    assert (view["spec"]["seed"], door.jobs()) == (2, before + 1)
    for args in (["owner", "mascot"], [door.request(), door.request()], [[door.request()]], [5]):
        faults = refused(door.send(args, kwargs=door.request()))
        assert set(faults) == {"positional arguments"}
        assert "give arguments by name" in faults["positional arguments"]
    assert door.jobs() == before + 1


def test_partial(door: Door) -> None:
    """A signature with a part of the arguments; the call has the rest."""
    request = door.request()
    images = request.pop("images")
    part = door.application.signature("imprint.train_lora", kwargs=request, queue="io")
    assert got(part.apply_async(kwargs={"images": images}))["subject_id"] == "mascot"
    assert got(part.clone(kwargs={"images": images, "seed": 3}).apply_async())["spec"]["seed"] == 3
    assert got(part.apply_async(args=[{"images": images}]))["subject_id"] == "mascot"  # as a chain passes a result
    assert set(refused(part.apply_async())) == {"images"}


@pytest.mark.parametrize("option", ["countdown", "eta"])
def test_countdown_eta(door: Door, option: str) -> None:
    def when(seconds: float) -> dict[str, Any]:
        return {option: seconds if option == "countdown" else datetime.now(UTC) + timedelta(seconds=seconds)}

    begun = datetime.now(UTC)
    view = got(door.send(**when(1)))
    assert datetime.fromisoformat(view["created_at"]) >= begun + timedelta(seconds=1)
    before = door.jobs()
    faults = refused(door.send(**when(2 * 3600)))
    assert set(faults) == {"countdown"}
    assert "at most 3600 s ahead" in faults["countdown"]
    assert door.jobs() == before


def test_priority(door: Door) -> None:
    """On Redis, 0 comes before 9. RabbitMQ's queues have no priorities: the first comes first."""
    late, urgent = got(door.late), got(door.urgent)
    first, second = (urgent, late) if door.broker == "redis" else (late, urgent)
    assert first["created_at"] < second["created_at"]


def test_expires(door: Door) -> None:
    """Nothing is stored. On Redis the caller gets an error; RabbitMQ itself drops the message."""
    if door.broker == "redis":
        with pytest.raises(TaskRevokedError):
            door.expired.get(timeout=60)
    else:
        assert door.expired.state == "PENDING"
    assert got(door.send(expires=600))["status"] in ("pending", "training")  # in time


def test_headers(door: Door) -> None:
    assert got(door.send(headers={"shop": "7", "trace": {"id": "x"}}))["status"] in ("pending", "training")


def test_shadow(door: Door) -> None:
    got(door.send(shadow="shop.train"))
    until(lambda: "Task shop.train[" in door.site.log("io").read_text(), 60, "the name in the log")


def test_task_id(door: Door) -> None:
    request = door.request()
    view = got(door.send(kwargs=request, task_id=f"order-7-{door.broker}"))
    assert got(door.send(kwargs=request, task_id=f"order-7-{door.broker}"))["job_id"] == view["job_id"]
    again = door.application.AsyncResult(f"order-7-{door.broker}")
    assert again.get(timeout=60)["job_id"] == view["job_id"]


def test_ignore_result(door: Door) -> None:
    before = door.jobs()
    sent = door.send(ignore_result=True)
    until(lambda: door.jobs() == before + 1, 60, "the job is stored")
    assert sent.state == "PENDING"
    assert accounts.balance(door.site.services, "owner").held > 0
