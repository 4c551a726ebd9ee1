"""Workers are restarted and killed (pytest-celery's `celery_setup`): jobs go on, and each is charged once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_celery import CeleryTestSetup

from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from tests.integration.cluster import (
    celery_backend_cluster,
    celery_broker_cluster,
    celery_setup_app,
    celery_worker_cluster,
)
from tests.site import Site, site, until

__all__ = ["celery_backend_cluster", "celery_broker_cluster", "celery_setup_app", "celery_worker_cluster"]


@pytest.fixture
def celery_site(base_model: Path, tmp_path: Path) -> Iterator[Site]:
    # With a lease of a minute, a job that goes on within seconds was handed over: nobody waited for the lease's end.
    with site(tmp_path, base_model, IMPRINT_LEASE_S="60") as running:
        running.grant("owner")
        yield running


def checkpoints(running: Site, job_id: str) -> list[int]:
    return [int(key.split("/")[-1].split(".")[0]) for key in running.services.store.list(f"checkpoints/{job_id}/")]


@pytest.mark.drawn
def test_a_worker_that_is_asked_to_stop_hands_over(celery_setup: CeleryTestSetup, celery_site: Site) -> None:
    io, train = celery_setup.worker_cluster
    assert celery_setup.ready(docker=True, control=True)
    job_id = celery_site.send(max_steps=300)["job_id"]
    at = celery_site.wait(job_id, lambda view: view["step"] > 0)["step"]
    train.kill("SIGTERM")
    kept = max(checkpoints(celery_site, job_id))
    assert kept >= at
    train.restart()
    celery_site.wait(job_id, lambda view: view["step"] > kept)
    train.assert_log_exists(f"resumes at step {kept}")
    io.restart()
    view = celery_site.wait(job_id)
    assert (view["status"], view["attempt"] <= 1) == ("ready", True), view["failure"]
    assert [entry.kind for entry in accounts.statement(celery_site.services, "owner")] == ["settle", "hold", "grant"]


def test_killed_between_two_requests(celery_setup: CeleryTestSetup, celery_site: Site) -> None:
    """kill -9 while nothing is under way leaves nothing behind; requests wait in the broker for the next worker."""
    io, _ = celery_setup.worker_cluster
    images = celery_site.pictures("owner")
    io.kill()
    assert not io.ready()
    request = {"owner_id": "owner", "subject_id": "mascot", "images": images, "base_model": "sd15", "resolution": 64,
               "trigger_word": "imp", "seed": 7, "max_steps": 2}  # fmt: skip
    sent = celery_setup.app.send_task("imprint.train_lora", kwargs=request, queue="io")
    assert service.jobs(celery_site.services, owner_id="owner") == []
    io.restart()
    job_id = sent.get(timeout=60)["job_id"]
    sent.forget()
    sent.backend = None
    assert celery_site.wait(job_id)["status"] == "ready"
    assert sweeps.run_audit(celery_site.services) == []
    until(lambda: len(celery_site.left_behind(job_id)) == 1, 60, "nothing left but the file")


def test_a_job_whose_launches_end_in_an_error_before_the_claim_fails(base_model: Path, tmp_path: Path) -> None:
    """A training worker whose own settings break each claim: the job does not wait for the end of its hold."""
    with site(tmp_path, base_model, start=("io", "beat")) as running:
        running.grant("owner")
        running.start("train", IMPRINT_LEASE_S="1e30")  # more seconds than there are
        view = running.wait(running.send()["job_id"])
        assert "OverflowError" in running.log("train").read_text()
        assert (view["status"], view["failure"]["code"]) == ("failed", "internal")
        assert "train: 3 launches ended in an error" in view["failure"]["message"]
        assert [entry.kind for entry in accounts.statement(running.services, "owner")] == ["release", "hold", "grant"]
        running.stop("train")
        running.start("train")
        assert running.wait(running.send()["job_id"])["status"] == "ready"
