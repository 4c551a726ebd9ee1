"""The broker goes away: the workers stay, the training goes on, the job ends ready, and launches go on working."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import service
from jobs.owners import accounts
from storage.tables.jobs import Job
from tests.samples import FULL
from tests.servers.redis import redis_server
from tests.site import RECIPE, ROOT, Site, site, until

pytestmark = pytest.mark.drawn

GONE_S = 60.0 if FULL else 12.0

# Launches, loses the connection to the results while pictures of that job have theirs, and launches again.
LAUNCHING = """
import sys
from jobs.services import services
from tasks import pipeline
from tasks.app import app
pipeline.launch(services(), sys.argv[1], "msg_1")
print(len(app.backend.result_consumer.subscribed_to), flush=True)
sys.stdin.readline()
pipeline.launch(services(), sys.argv[2], "msg_1")
"""


@pytest.mark.timeout(600)
def test_redis_is_gone_in_mid_training(base_model: Path, tmp_path: Path) -> None:
    """Celery 5.7.0's own consumer exits with code 1 here; ours must not. A minute long in a full run."""
    with site(tmp_path, base_model) as running:
        assert running.broker is not None
        running.grant("owner")
        # More steps than this machine makes while Redis is away, by how fast it makes the first ones.
        measured = running.send(max_steps=100)["job_id"]
        running.wait(measured)
        with running.services.database.reading() as session:
            seconds_per_step = session.get_one(Job, measured).seconds_per_step
        assert seconds_per_step
        job_id = running.send(max_steps=int(GONE_S * 1.3 / seconds_per_step))["job_id"]
        before = running.wait(job_id, lambda view: view["step"] > 0)["step"]
        train = running.processes["train"]
        running.broker.kill()
        gone = time.monotonic()
        # The training does not wait for the broker, neither at once nor in the end.
        running.wait(job_id, lambda view: view["step"] > before + 20, timeout_s=60)
        until(lambda: time.monotonic() - gone >= GONE_S, GONE_S + 5, "Redis was away for long enough")
        at = running.view(job_id)["step"]
        running.wait(job_id, lambda view: view["step"] > at or view["stage"] != "train", timeout_s=60)
        running.broker.start()
        view = running.wait(job_id, timeout_s=240)
        assert view["status"] == "ready", view["failure"]
        assert train.alive
        assert "Connection to broker lost" in running.log("train").read_text()
        kinds = [entry.kind for entry in accounts.statement(running.services, "owner")]
        assert kinds == ["settle", "hold", "settle", "hold", "grant"]


def test_redis_loses_everything(base_model: Path, tmp_path: Path) -> None:
    """All queued messages are gone; the sweep sends the jobs again from the database."""
    with site(tmp_path, base_model, start=("io",), IMPRINT_RELAUNCH_AFTER_S="3") as running:
        assert running.redis is not None
        running.grant("owner")
        jobs = [running.send()["job_id"] for _ in range(3)]
        for job_id in jobs:
            running.wait(job_id, lambda view: view["stage"] == "train")
        running.redis.kill()
        running.redis.forget()
        running.redis.start()
        running.start("train")
        running.start("beat")
        for job_id in jobs:
            assert running.wait(job_id)["status"] == "ready"
        until(lambda: accounts.balance(running.services, "owner").held == 0, 60, "all settled")


def test_a_launch_keeps_no_subscription_that_breaks_the_next_one(base_model: Path, tmp_path: Path) -> None:
    """Celery subscribes to each picture's result, and asks for all of them again when Redis has been away."""
    with redis_server(tmp_path / "redis") as redis:
        made = Site(tmp_path, base_model, redis.url)
        try:
            made.services.database.migrate()
            made.grant("owner")
            jobs = [accepted(made, seed) for seed in (1, 2)]
            with subprocess.Popen(
                [sys.executable, "-c", LAUNCHING, *jobs],
                cwd=ROOT,
                env=made.surroundings(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as launching:
                assert launching.stdout is not None
                assert int(launching.stdout.readline()) == 0
                made.start("io")  # its pictures are prepared, and their results are there
                until(lambda: made.view(jobs[0])["stage"] == "train", 60, "the pictures are done")
                redis.restart()
                _, message = launching.communicate("\n", timeout=120)
                assert launching.returncode == 0, message
        finally:
            made.end()


def accepted(site: Site, seed: int) -> str:
    request = {"owner_id": "owner", "subject_id": "mascot", "images": site.pictures("owner"), **RECIPE, "seed": seed}
    return str(service.submit(site.services, request).job_id)
