"""A worker that stands still past its lease and wakes when another has finished its work: it stops, writes nothing.

An hour of it or five seconds are the same: what counts is whose token is the newest.
"""

import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from tests.servers.gated_s3 import GatedS3, gated_s3
from tests.servers.process import ServerProcess
from tests.site import Site, site, until

pytestmark = pytest.mark.drawn


def all_that_is_kept(running: Site, s3: GatedS3, job_id: str) -> dict[str, Any]:
    """The job, its events, its credits, and every object that is its own, with the time when it was written."""
    pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket=s3.bucket)
    objects = [entry for page in pages for entry in page.get("Contents", ()) if job_id in entry["Key"]]
    return {
        "job": running.view(job_id),
        "events": [(event.kind, event.data) for event in service.events(running.services, job_id)],
        "credits": accounts.statement(running.services, "owner"),
        "objects": [(entry["Key"], entry["ETag"], entry["LastModified"]) for entry in objects],
    }


def settled(running: Site, s3: GatedS3, job_id: str) -> dict[str, Any]:
    view = running.wait(job_id, timeout_s=240)
    assert view["status"] == "ready", view["failure"]
    file = view["lora"]["key"]
    # What a paused worker has unpacked stays until it wakes.
    until(lambda: [one for one in running.left_behind(job_id) if not Path(one).is_absolute()] == [file], 90, "cleaned")
    return all_that_is_kept(running, s3, job_id)


def pause(running: Site, name: str) -> ServerProcess:
    """Stop a worker's process where it stands, but not while it holds SQLite's write lock: that would stop everyone."""
    process = running.processes[name]

    def is_paused() -> bool:
        process.signal(signal.SIGSTOP)
        database = sqlite3.connect(running.settings.home / "imprint.db", timeout=2, isolation_level=None)
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            process.signal(signal.SIGCONT)
            return False
        finally:
            database.close()
        return True

    until(is_paused, 60, "paused")
    return process


def test_a_training_that_wakes_long_after_its_lease_stops_and_writes_nothing(base_model: Path, tmp_path: Path) -> None:
    with gated_s3() as s3, site(tmp_path, base_model, **s3.environment) as running:
        running.grant("owner")
        job_id = running.send(max_steps=200)["job_id"]
        running.wait(job_id, lambda view: view["step"] > 0)
        paused = pause(running, "train")
        running.start("train-2")
        kept = settled(running, s3, job_id)

        paused.signal(signal.SIGCONT)
        until(
            lambda: "another worker has claimed the job, or it is final" in running.log("train").read_text(),
            90,
            "it left",
        )
        until(lambda: len(running.left_behind(job_id)) == 1, 60, "its folder is gone")
        running.stop("train-2")
        # It is as good as new: the only one left, it trains the next job.
        following = running.send()["job_id"]
        settled(running, s3, following)
        assert kept == all_that_is_kept(running, s3, job_id) | {"credits": kept["credits"]}
        kinds = [entry.kind for entry in accounts.statement(running.services, "owner")]
        assert kinds == ["settle", "hold", "settle", "hold", "grant"]
        assert sweeps.run_audit(running.services) == []


def test_an_upload_that_arrives_after_another_has_settled_changes_nothing(base_model: Path, tmp_path: Path) -> None:
    """Its request is on the way all the while, and comes to the store when the job is ready: create-only refuses it."""
    with gated_s3() as s3, site(tmp_path, base_model, **s3.environment) as running:
        running.grant("owner")
        s3.hold("PUT", "/models/", first_only=True)
        job_id = running.send()["job_id"]
        assert s3.reached.wait(120)
        paused = pause(running, "io")
        running.start("io-2")
        kept = settled(running, s3, job_id)

        s3.release()
        paused.signal(signal.SIGCONT)
        refused = f"models/{job_id}/lora_weights.safetensors exists already"
        until(lambda: refused in running.log("io").read_text(), 90, "late")
        running.stop("io-2")
        settled(running, s3, running.send()["job_id"])
        assert kept == all_that_is_kept(running, s3, job_id) | {"credits": kept["credits"]}
        assert sweeps.run_audit(running.services) == []
