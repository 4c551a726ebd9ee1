"""An upload whose store does not answer: the stage has a deadline of its own, and its process is free again."""

from pathlib import Path

import pytest

from jobs import service
from tests.servers.gated_s3 import gated_s3
from tests.site import site, until

pytestmark = pytest.mark.drawn


def test_another_worker_uploads_and_the_hanging_process_is_killed(base_model: Path, tmp_path: Path) -> None:
    with gated_s3() as s3, site(tmp_path, base_model, IMPRINT_STAGE_TIMEOUT_S="6", **s3.environment) as running:
        running.grant("owner")
        s3.hold("PUT", "/models/", first_only=True)  # for 240 s
        job_id = running.send()["job_id"]
        assert s3.reached.wait(120)
        view = running.wait(job_id, timeout_s=120)
        assert view["status"] == "ready", view["failure"]
        log = running.log("io")
        assert "takes longer than 6 s: another worker may try" in log.read_text()
        until(lambda: "Hard time limit (12.0s) exceeded for imprint.upload" in log.read_text(), 60, "killed")
        retries = [event.data["reason"] for event in service.events(running.services, job_id) if event.kind == "retry"]
        assert retries == ["no worker was working on it"]
