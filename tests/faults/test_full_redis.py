"""A broker that takes nothing more: Redis at its memory limit, as `noeviction` has it, and one that evicts messages."""

from pathlib import Path

import pytest
import redis

from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from tests.site import RECIPE, Site, site, until

pytestmark = pytest.mark.drawn


def accept(running: Site, seed: int) -> str:
    """A request that comes by another door than the broker."""
    images = running.pictures("owner")
    request = {"owner_id": "owner", "subject_id": "mascot", **RECIPE, "images": images, "seed": seed}
    job_id: str = service.submit(running.services, request).job_id
    return job_id


def test_jobs_wait_while_redis_is_full_and_go_on_by_themselves(base_model: Path, tmp_path: Path) -> None:
    with site(tmp_path, base_model, IMPRINT_SWEEP_S="2") as running:
        running.grant("owner")
        assert running.redis is not None
        with redis.Redis.from_url(running.redis.url) as client:
            under_way = running.send(max_steps=60)["job_id"]
            running.wait(under_way, lambda view: view["step"] > 0)
            client.config_set("maxmemory", 1)
            waiting = accept(running, seed=2)
            # The training meets it: what follows its step cannot be sent.
            running.wait(under_way, lambda view: view["stage"] != "train")
            client.config_set("maxmemory", 0)
            # All messages are gone too, as with an eviction policy that does not suit a broker.
            client.flushall()
        for job_id in (under_way, waiting):
            view = running.wait(job_id, timeout_s=180)
            assert view["status"] == "ready", view["failure"]
        assert all(process.alive for process in running.processes.values())
        kinds = [entry.kind for entry in accounts.statement(running.services, "owner")]
        assert sorted(kinds) == ["grant", "hold", "hold", "settle", "settle"]
        assert sweeps.run_audit(running.services) == []
        until(lambda: not running.left_behind(under_way)[1:], 60, "cleaned")
