"""kill -9 in every stage: the job goes on where it stood, ends ready, and is charged once."""

import json
import sqlite3
from pathlib import Path

import pytest

from jobs import accounts, service, sweeps
from jobs.view import View
from tests.servers.gated_s3 import gated_s3
from tests.servers.pictures import picture_server
from tests.site import Site, drawing, site, until


def ready_and_charged_once(running: Site, job_id: str) -> View:
    view = running.wait(job_id)
    assert view["status"] == "ready", view["failure"]
    kinds = [entry["kind"] for entry in accounts.statement(running.services, "owner")]
    assert kinds.count("settle") == kinds.count("hold")
    assert accounts.balance(running.services, "owner").held == 0
    assert sweeps.check_books(running.services) == []
    return view


def test_killed_training_goes_on_from_its_last_checkpoint(base_model: Path, tmp_path: Path) -> None:
    with site(tmp_path, base_model) as running:
        running.grant("owner")
        images = running.pictures("owner")
        undisturbed = running.wait(running.send(images=images, max_steps=400)["job_id"])
        disturbed = running.send(images=images, max_steps=400)["job_id"]
        # Past its first checkpoint, which comes after ten epochs of six pictures, and not at its end.
        running.wait(disturbed, lambda view: any(running.services.store.list(f"checkpoints/{disturbed}/")))
        running.kill("train")
        assert running.look(disturbed)["status"] == "training"
        running.start("train")
        view = ready_and_charged_once(running, disturbed)
        assert "goes on from step" in running.log("train").read_text()
        # On a CPU the file is the same, byte for byte, as if nothing had happened.
        assert view["lora"]["sha256"] == undisturbed["lora"]["sha256"]
        until(lambda: len(running.left_behind(disturbed)) == 1, 20, "nothing left but the file")


def test_a_worker_that_is_asked_to_stop_hands_over(base_model: Path, tmp_path: Path) -> None:
    with site(tmp_path, base_model, start=("io", "train", "beat"), IMPRINT_LEASE_S="60") as running:
        running.grant("owner")
        job_id = running.send(max_steps=400)["job_id"]
        at = running.wait(job_id, lambda view: view["step"] > 20)["step"]
        assert running.stop("train") == 0
        kept = [int(key.split("/")[-1].split(".")[0]) for key in running.services.store.list(f"checkpoints/{job_id}/")]
        assert max(kept) >= at
        # The lease was given back: with 60 s of it, waiting for its end would be too long for this.
        running.start("train")
        running.wait(job_id, lambda view: view["step"] > max(kept), timeout_s=40)
        assert f"goes on from step {max(kept)}" in running.log("train").read_text()
        assert ready_and_charged_once(running, job_id)["attempt"] <= 1


def test_killed_while_fetching_pictures(base_model: Path, tmp_path: Path) -> None:
    with picture_server() as server:
        urls = [server.put(f"/{n}.png", drawing(tmp_path / f"{n}.png", n).read_bytes()) for n in range(6)]
        server.held.add("/3.png")
        allowed = json.dumps([server.address])
        with site(tmp_path / "site", base_model, IMPRINT_FETCH_ALLOW_HOSTS=allowed) as running:
            running.grant("owner")
            job_id = running.send(images=urls)["job_id"]
            until(lambda: server.asked.get("/3.png", 0) > 0, 30, "the held picture is asked for")
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
def test_killed_in_a_stage(base_model: Path, tmp_path: Path, stage: str, method: str, part: str, worker: str) -> None:
    with gated_s3() as s3, site(tmp_path, base_model, **s3.environment) as running:
        running.grant("owner")
        images = running.pictures("owner")
        s3.hold(method, part)
        job_id = running.send(images=images)["job_id"]
        assert s3.reached.wait(60), running.look(job_id)
        assert running.look(job_id)["stage"] == stage
        running.kill(worker)
        s3.release()
        running.start(worker)
        ready_and_charged_once(running, job_id)
        assert running.look(job_id)["lora"] is not None


def test_killed_while_settling(base_model: Path, tmp_path: Path) -> None:
    """The worker waits for the database in `settle`, is killed there, and another settles: once."""
    with gated_s3() as s3, site(tmp_path, base_model, **s3.environment) as running:
        running.grant("owner")
        s3.hold("GET", "/models/")
        job_id = running.send()["job_id"]
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


def test_cancelled_between_training_and_settling(base_model: Path, tmp_path: Path) -> None:
    """The owner cancels while the file is on its way: charged nothing, and the file does not stay."""
    with gated_s3() as s3, site(tmp_path, base_model, **s3.environment) as running:
        running.grant("owner")
        s3.hold("GET", "/models/")
        job_id = running.send()["job_id"]
        assert s3.reached.wait(60)
        assert service.cancel(running.services, job_id)["status"] == "cancelled"
        s3.release()
        until(lambda: running.left_behind(job_id) == [], 30, "the file is taken away")
        view = running.look(job_id)
        assert (view["status"], view["credits"]["charged"], view["lora"]) == ("cancelled", 0, None)
        assert accounts.balance(running.services, "owner").available == 10_000
        assert sweeps.check_books(running.services) == []


def test_a_job_that_kills_its_worker_each_time_fails_and_is_refunded(base_model: Path, tmp_path: Path) -> None:
    with site(tmp_path, base_model) as running:
        running.grant("owner")
        job_id = running.send(max_steps=100_000)["job_id"]
        for attempt in (1, 2, 3):
            running.wait(job_id, lambda view, n=attempt: (view["stage"], view["attempt"]) == ("train", n))  # type: ignore[misc]
            running.kill("train")
            if attempt < 3:
                running.start("train")
        view = running.wait(job_id, timeout_s=60)
        assert (view["status"], view["failure"]["code"]) == ("failed", "worker_lost")
        assert accounts.balance(running.services, "owner").available == 10_000
        assert sweeps.check_books(running.services) == []


def test_two_beats_and_a_message_delivered_twice_change_nothing(base_model: Path, tmp_path: Path) -> None:
    with site(tmp_path, base_model) as running:
        running.start("beat-2")
        running.grant("owner")
        job_id = running.send(max_steps=60)["job_id"]
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
