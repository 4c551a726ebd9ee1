"""kill -9 in every stage: the job goes on where it stood, ends ready, and is charged once.

Workers that are asked to stop are in tests/integration/test_workers.py.
"""

import json
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from tests.servers.gated_s3 import GatedS3, gated_s3
from tests.servers.pictures import PictureServer, picture_server
from tests.site import Site, View, drawing, site, until


class Place(NamedTuple):
    """The site that these tests kill and mend, its store, and a server of pictures that it may fetch from."""

    site: Site
    s3: GatedS3
    pictures: PictureServer


@pytest.fixture(scope="module")
def shared_place(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with gated_s3() as s3, picture_server() as pictures:
        environment = {**s3.environment, "IMPRINT_FETCH_ALLOW_HOSTS": json.dumps([pictures.address])}
        with site(tmp_path_factory.mktemp("site"), base_model, **environment) as running:
            yield Place(running, s3, pictures)


@pytest.fixture
def place(shared_place: Place) -> Iterator[Place]:
    """Whole again, whatever the test before has killed."""
    for name in ("io", "train", "beat"):
        if name not in shared_place.site.processes:
            shared_place.site.start(name)
    yield shared_place
    shared_place.s3.release()


@pytest.fixture
def owner(place: Place) -> str:
    """An owner of this test's own, with credits."""
    name = f"owner-{secrets.token_hex(4)}"
    place.site.grant(name)
    return name


def ready_and_charged_once(running: Site, job_id: str) -> View:
    view = running.wait(job_id)
    assert view["status"] == "ready", view["failure"]
    owner = view["owner_id"]
    kinds = [entry.kind for entry in accounts.statement(running.services, owner)]
    assert kinds.count("settle") == kinds.count("hold")
    assert accounts.balance(running.services, owner).held == 0
    assert sweeps.run_audit(running.services) == []
    return view


def resumed_at(running: Site, job_id: str) -> list[str]:
    """What the training worker logged when it went on with the job."""
    lines = running.log("train").read_text().splitlines()
    return [line for line in lines if "resumes at step" in line and job_id in line]


def test_killed_training_goes_on_from_its_last_checkpoint(place: Place, owner: str) -> None:
    running = place.site
    images = running.pictures(owner)
    asked: dict[str, Any] = {"owner_id": owner, "images": images, "max_steps": 80, "checkpoint_every": 2}
    undisturbed = running.wait(running.send(**asked)["job_id"])
    place.s3.hold("PUT", "/outputs/")  # however fast the machine, it is not over before the kill
    disturbed = running.send(**asked)["job_id"]
    # Past its first checkpoint, which comes after two epochs of six pictures, and not at its end.
    running.wait(disturbed, lambda view: any(running.services.store.list(f"checkpoints/{disturbed}/")))
    running.kill("train")
    place.s3.release()
    assert running.view(disturbed)["status"] == "training"
    running.start("train")
    view = ready_and_charged_once(running, disturbed)
    assert resumed_at(running, disturbed)
    # On a CPU the file is the same, byte for byte, as if nothing had happened.
    assert view["lora"]["sha256"] == undisturbed["lora"]["sha256"]
    until(lambda: len(running.left_behind(disturbed)) == 1, 60, "nothing left but the file")


def test_killed_while_fetching_pictures(place: Place, owner: str, tmp_path: Path) -> None:
    running, server = place.site, place.pictures
    urls = [server.put(f"/{n}.png", drawing(tmp_path / f"{n}.png", n).read_bytes()) for n in range(6)]
    server.held.add("/3.png")
    job_id = running.send(owner_id=owner, images=urls)["job_id"]
    until(lambda: server.asked.get("/3.png", 0) > 0, 60, "the held picture is asked for")
    running.kill("io")
    server.held.clear()
    running.start("io")
    ready_and_charged_once(running, job_id)
    # What was prepared before the kill was not fetched again.
    assert {server.asked[f"/{n}.png"] for n in range(3)} == {1}


@pytest.mark.parametrize(
    ("stage", "method", "part", "worker"),
    [
        ("dataset", "PUT", "/datasets/", "io"),
        ("train", "PUT", "/outputs/", "train"),
        ("upload", "PUT", "/models/", "io"),
        ("upload", "GET", "/models/", "io"),
    ],
)
def test_killed_in_a_stage(place: Place, owner: str, stage: str, method: str, part: str, worker: str) -> None:
    running, s3 = place.site, place.s3
    images = running.pictures(owner)
    s3.hold(method, part)
    job_id = running.send(owner_id=owner, images=images)["job_id"]
    assert s3.reached.wait(60), running.view(job_id)
    assert running.view(job_id)["stage"] == stage
    running.kill(worker)
    s3.release()
    running.start(worker)
    ready_and_charged_once(running, job_id)
    assert running.view(job_id)["lora"] is not None


def test_killed_while_settling(place: Place, owner: str) -> None:
    """The worker waits for the database in `settle`, is killed there, and another settles: once."""
    running, s3 = place.site, place.s3
    s3.hold("GET", "/models/")
    job_id = running.send(owner_id=owner)["job_id"]
    assert s3.reached.wait(60)
    lock = sqlite3.connect(running.settings.home / "imprint.db", isolation_level=None)
    s3.release()
    running.wait(job_id, lambda view: view["stage"] == "settle")
    lock.execute("BEGIN IMMEDIATE")  # may come too late for the first settle; then the kill comes after it
    running.kill("io")
    lock.execute("COMMIT")
    lock.close()
    running.start("io")
    ready_and_charged_once(running, job_id)


def test_cancelled_between_training_and_settling(place: Place, owner: str) -> None:
    """The owner cancels while the file is on its way: charged nothing, and the file does not stay."""
    running, s3 = place.site, place.s3
    s3.hold("GET", "/models/")
    job_id = running.send(owner_id=owner)["job_id"]
    assert s3.reached.wait(60)
    assert service.cancel(running.services, job_id).status == "cancelled"
    s3.release()
    until(lambda: running.left_behind(job_id) == [], 60, "the file is taken away")
    view = running.view(job_id)
    assert (view["status"], view["credits"]["charged"], view["lora"]) == ("cancelled", 0, None)
    assert accounts.balance(running.services, owner).available == 10_000
    assert sweeps.run_audit(running.services) == []


def test_a_job_that_kills_its_worker_each_time_fails_and_is_refunded(place: Place, owner: str) -> None:
    running = place.site
    job_id = running.send(owner_id=owner, max_steps=100_000)["job_id"]
    for attempt in (1, 2, 3):
        running.wait(job_id, lambda view, n=attempt: (view["stage"], view["attempt"]) == ("train", n))  # type: ignore[misc]
        running.kill("train")
        if attempt < 3:
            running.start("train")
    view = running.wait(job_id, timeout_s=60)
    assert (view["status"], view["failure"]["code"]) == ("failed", "worker_lost")
    assert accounts.balance(running.services, owner).available == 10_000
    assert sweeps.run_audit(running.services) == []


def test_two_beats_and_a_message_delivered_twice_change_nothing(place: Place, owner: str) -> None:
    running = place.site
    running.start("beat-2")
    job_id = running.send(owner_id=owner, max_steps=60)["job_id"]
    for name, arguments, queue in (
        ("imprint.preprocess", (job_id, 0), "io"),
        ("imprint.dataset", (job_id,), "cpu"),
        ("imprint.train", (job_id,), "train.sd15"),
        ("imprint.upload", (job_id,), "io"),
        ("imprint.settle", (job_id,), "io"),
        ("imprint.step_failed", (job_id,), "io"),
    ) * 2:
        running.application.send_task(name, arguments, queue=queue)
    ready_and_charged_once(running, job_id)
    trained = [event for event in service.events(running.services, job_id) if event.kind == "retry"]
    assert trained == []
    running.kill("beat-2")
