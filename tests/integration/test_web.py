"""The API as a process of its own, with real workers: from upload to file, and event streams over a restart."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from jobs import history, service
from jobs.lifecycle import launches
from jobs.owners import tokens
from jobs.services import Services
from tests.queries import queries_of
from tests.servers.databases import address, postgres
from tests.site import MASCOT, Site, site, until

__all__ = ["address", "postgres"]


class Client:
    """A caller of one owner."""

    def __init__(self, made: Site, owner: str) -> None:
        self.secret = tokens.create(made.services, "test", owner_id=owner)[0]
        self.http = httpx2.Client(
            base_url=made.web_url, headers={"Authorization": f"Bearer {self.secret}"}, timeout=60, trust_env=False
        )

    def json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = self.http.request(method, path, **options)
        assert answer.status_code < 300, answer.text
        content: dict[str, Any] = answer.json()
        return content

    def events(self, job_id: str, last: str | None = None) -> Iterator[dict[str, str]]:
        """The events of one connection, with their numbers; ends where the connection does."""
        headers = {"Last-Event-ID": last} if last else {}
        event: dict[str, str] = {}
        with self.http.stream("GET", f"/api/trainings/{job_id}/events", headers=headers) as answer:
            assert answer.status_code in (200, 204), answer.read()
            for line in answer.iter_lines():
                if not line and "id" in event:
                    yield event
                if not line:
                    event = {}
                elif not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    event[name] = value


def test_upload_train_follow_download(base_model: Path, tmp_path: Path) -> None:
    with site(tmp_path / "site", base_model) as made:
        made.grant("ada")
        made.start("web")
        ada = Client(made, "ada")
        files = [("files", (file.name, file.read_bytes())) for file in sorted(MASCOT.glob("*.png"))[:6]]
        stored = ada.json("POST", "/api/influencer/rex/images", files=files)
        assert [image["verdict"] for image in stored["images"]] == ["good"] * 6
        settings = {"trainAutomatically": True, "baseModel": "sd15", "triggerWord": "imp"}
        ada.json("PATCH", "/api/influencer/rex/lora/settings", json=settings)

        body = {"imageIds": [image["id"] for image in stored["images"]], "resolution": 64, "maxSteps": 3, "seed": 7}
        job_id = ada.json("POST", "/api/influencer/rex/lora/train", json=body)["id"]
        events = list(ada.events(job_id))
        kinds = [event["event"] for event in events]
        assert json.loads(events[-1]["data"])["status"] == "ready", events
        assert "progress" in kinds
        numbers = [int(event["id"]) for event in events]
        assert numbers == sorted(set(numbers)) == [event.id for event in service.events(made.services, job_id)]
        assert list(ada.events(job_id, events[-1]["id"])) == []

        training = ada.json("GET", f"/api/trainings/{job_id}")
        download = ada.http.get(f"/api/trainings/{job_id}/download", follow_redirects=True)
        assert download.headers["content-type"] == "application/octet-stream"
        assert hashlib.sha256(download.content).hexdigest() == training["lora"]["sha256"]
        assert ada.json("GET", "/api/account")["spent"] == training["credits"]["charged"] >= 1
        assert httpx2.get(f"{made.web_url}/readyz", timeout=60, trust_env=False).json()["status"] == "ok"

        # The task of an application does what the route does; workers are told by either.
        sent = made.application.send_task("imprint.profile_set_completed", args=("ada", "rex"), queue="io")
        done = sent.get(timeout=60)
        sent.forget()
        assert (done["started"], done["training"]["spec"]["trigger_word"]) == (True, "imp")
        again = ada.json("POST", "/api/influencer/rex/profile-set/completed")
        assert (again["reason"], again["training"]["id"]) == ("already_started", done["training"]["job_id"])
        ada.json("POST", f"/api/trainings/{done['training']['job_id']}/cancel")
        made.wait(done["training"]["job_id"])
        assert made.stop("web") == 0


@pytest.fixture
def served(address: str, base_model: Path, tmp_path: Path) -> Iterator[Site]:
    """The API alone, on each kind of database: no broker answers, and what happens is written by the test."""
    made = Site(tmp_path / "site", base_model, "redis://127.0.0.1:1/0", IMPRINT_DATABASE_URL=address)
    made.grant("ada")
    made.start("web")
    yield made
    made.end()


def accepted(made: Site, owner: str = "ada") -> str:
    recipe = {"base_model": "sd15", "trigger_word": "imp", "subject_id": "rex", "owner_id": owner}
    job_id: str = service.submit(made.services, {**recipe, "images": made.pictures(owner, 5)}).job_id
    return job_id


def write(services: Services, job_id: str, number: int) -> None:
    with services.database.writing() as session:
        launches.record_event(session, job_id, "progress", step=number)


@pytest.mark.drawn
def test_no_event_is_lost_over_restarts_and_writers_that_commit_late(served: Site) -> None:
    """Two writers, one of which takes its time before each commit; the API is killed once and stopped once."""
    job_id = accepted(served)
    ada = Client(served, "ada")
    seen: list[dict[str, str]] = []
    over = threading.Event()

    def follow() -> None:
        while not over.is_set():
            with suppress(httpx2.TransportError):  # it is down just now
                for event in ada.events(job_id, seen[-1]["id"] if seen else None):
                    seen.append(event)
                    if json.loads(event["data"]).get("status") == "cancelled":
                        return
            time.sleep(0.05)

    def write_slowly() -> None:
        services = Services(served.settings)
        for number in range(1000, 1040):
            with services.database.writing() as session:
                launches.record_event(session, job_id, "progress", step=number)
                session.flush()  # it has its number now, and is visible only later
                time.sleep(0.05)
        services.database.close()

    follower, slow = threading.Thread(target=follow), threading.Thread(target=write_slowly)
    follower.start()
    slow.start()
    for number in range(120):
        write(served.services, job_id, number)
        if number == 40:
            served.kill("web")
            served.start("web")
        if number == 80:
            assert served.stop("web") == 0  # open streams do not keep it
            served.start("web")
    slow.join(120)
    service.cancel(served.services, job_id)
    follower.join(120)
    over.set()
    written = [event.id for event in service.events(served.services, job_id)]
    assert [int(event["id"]) for event in seen] == written
    steps = {json.loads(event["data"]).get("step") for event in seen} - {None}
    assert steps == {*range(120), *range(1000, 1040)}


def test_two_hundred_streams_cost_the_queries_of_one(base_model: Path, tmp_path: Path) -> None:
    made = Site(
        tmp_path / "site", base_model, "redis://127.0.0.1:1/0", IMPRINT_WEB_RATE_PER_S="1000",
        IMPRINT_STREAMS_PER_CALLER="200",
    )  # fmt: skip
    made.grant("ada")
    made.start("web")
    try:
        jobs = [accepted(made) for _ in range(4)]
        ada = Client(made, "ada")
        streams: list[list[str]] = [[] for _ in range(200)]

        def follow(index: int) -> None:
            client = Client(made, "ada") if index < 4 else ada
            for event in client.events(jobs[index % 4]):
                streams[index].append(event["id"])

        ada.http = httpx2.Client(
            base_url=made.web_url, headers=ada.http.headers, timeout=120, trust_env=False,
            limits=httpx2.Limits(max_connections=300),
        )  # fmt: skip
        threads = [threading.Thread(target=follow, args=(index,)) for index in range(200)]
        for thread in threads:
            thread.start()
        until(lambda: all(len(ids) == 2 for ids in streams), 120, "all streams open")
        process = psutil.Process(made.processes["web"].pid)
        before, begun = sum(process.cpu_times()[:2]), time.monotonic()
        time.sleep(4)  # silence: what is measured is what two hundred idle streams cost
        idle = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - begun)
        for number in range(10):
            for job_id in jobs:
                write(made.services, job_id, number)
        for job_id in jobs:
            service.cancel(made.services, job_id)
        for thread in threads:
            thread.join(120)
        for index, ids in enumerate(streams):
            assert ids == [str(event.id) for event in service.events(made.services, jobs[index % 4])], index
        assert idle < 0.2, f"200 idle streams take {idle:.0%} of a core"
    finally:
        made.end()


def test_events_of_many_jobs_come_in_one_query(served: Site) -> None:
    ids = [accepted(served) for _ in range(3)]
    for number in range(5):
        for job_id in ids:
            write(served.services, job_id, number)
    middle = service.events(served.services, ids[0])[2].id or 0
    with queries_of(served.services.database) as queries:
        found = history.events_of(served.services, {ids[0]: middle, ids[1]: 0})
    assert len([query for query in queries if "job_event" in query]) == 1
    expected = service.events(served.services, ids[0], middle) + service.events(served.services, ids[1])
    assert [event.id for event in found] == sorted(event.id or 0 for event in expected)
