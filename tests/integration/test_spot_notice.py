"""A spot machine is taken away: its worker learns it from the cloud, and another one continues at the same step."""

import time
from pathlib import Path

import pytest

from jobs.lifecycle import sweeps
from tasks.workers.spot_notice import SpotNotice
from tests.servers.metadata import ACTION, metadata_server
from tests.site import site, until

NOTICE_S = 30.0  # what Google gives; Amazon gives two minutes


@pytest.mark.parametrize(("cloud", "says"), [("aws", ACTION), ("gcp", "preempted")])
def test_the_notice_is_read_and_silence_is_none(cloud: str, says: str) -> None:
    with metadata_server() as server:
        notice = SpotNotice(cloud, server.environment)  # type: ignore[arg-type]
        assert notice.get() == ""
        server.token = "token-2"  # the first one is over
        server.is_noticed = True
        until(lambda: notice.get() == says, 10, "the notice")
    assert notice.get() == ""  # nothing answers


def test_a_training_on_a_machine_that_is_taken_away_ends_elsewhere_byte_for_byte(
    base_model: Path, tmp_path: Path
) -> None:
    """With a lease of a minute, a job that continues within seconds was handed over."""
    with metadata_server() as server, site(tmp_path, base_model, IMPRINT_LEASE_S="60", start=("io", "beat")) as running:
        running.grant("owner")
        images = running.pictures("owner")
        running.start("train", IMPRINT_SPOT_NOTICE="gcp", **server.environment)
        undisturbed = running.wait(running.send(images=images, max_steps=100)["job_id"])
        job_id = running.send(images=images, max_steps=100)["job_id"]
        step = running.wait(job_id, lambda view: view["step"] > 10)["step"]
        server.is_noticed, noticed_at = True, time.monotonic()
        until(lambda: any(running.services.store.list(f"checkpoints/{job_id}/")), NOTICE_S, "a checkpoint")
        until(lambda: not running.processes["train"].alive, NOTICE_S, "the end of the worker")
        assert time.monotonic() - noticed_at < NOTICE_S
        assert "the cloud takes this machine away: preempted" in running.log("train").read_text()
        assert running.view(job_id)["step"] < 100
        running.start("train-2")
        view = running.wait(job_id)
        assert view["status"] == "ready", view["failure"]
        assert view["lora"]["sha256"] == undisturbed["lora"]["sha256"]
        assert "resumes at step" in running.log("train-2").read_text()
        assert step > 10
        assert sweeps.run_audit(running.services) == []
