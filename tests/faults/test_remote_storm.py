"""Many remote trainings at once over servers that fail in every way they know: each job ends, nothing is left, once.

`make test` draws one of the two storms, with ten jobs; `make test-full` has both with twenty, and `make faults-remote`
(REMOTE_JOBS) with a hundred. The seed is printed with a failure.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from jobs.lifecycle import sweeps
from jobs.owners import accounts
from tests.samples import FULL, sample
from tests.servers.fake_pod import fake_pod
from tests.servers.remote import ENVIRONMENT, START, done_twice, is_cleared, remote_runs
from tests.servers.runpod import runpod_server
from tests.site import Site, site, until

JOBS = int(os.environ.get("REMOTE_JOBS", "20" if FULL else "10"))
SEED = int(os.environ.get("REMOTE_SEED", "7"))
TIME_S = 150 + 8 * JOBS
STORM = ENVIRONMENT | {
    "IMPRINT_IO_CONCURRENCY": "3",
    "IMPRINT_REMOTE_STALL_S": "15",
    "IMPRINT_LEASE_S": "4",
    "IMPRINT_RELAUNCH_AFTER_S": "60",
}
POD = {"faults": SEED, "slots": 8, "hang_s": 3, "seconds_per_step": 0.02, "loading_s": 0.2}

pytestmark = [pytest.mark.timeout(TIME_S + 300), pytest.mark.drawn]


def send_all(running: Site) -> list[str]:
    running.grant("owner", 100_000)
    images = running.pictures("owner")
    return [running.send(images=images, max_steps=40 + number)["job_id"] for number in range(JOBS)]


def all_have_ended(running: Site, job_ids: list[str]) -> None:
    """Every job ended once, with a charge or a refund; its attempts came one after another."""
    active = set(job_ids)

    def still_active() -> set[str]:
        active.difference_update(
            [one for one in active if running.view(one)["status"] in ("ready", "failed", "cancelled")]
        )
        return active

    until(lambda: not still_active(), TIME_S, f"the last of {JOBS} jobs ends, seed {SEED}")
    views = [running.view(job_id) for job_id in job_ids]
    ends = Counter(view["status"] for view in views)
    print(ends, Counter(run["reason"] for job_id in job_ids for run in remote_runs(running, job_id)))
    for view in views:
        ready = view["status"] == "ready"
        assert ready or view["failure"]["code"] in ("backend_failed", "backend_unreachable"), (SEED, view)
        assert (view["credits"]["charged"] > 0, view["credits"]["held"]) == (ready, 0), (SEED, view)
        attempts = remote_runs(running, view["job_id"])
        for before, after in pairwise(attempts):
            assert after["submitted_at"] is None or before["ended_at"] < after["submitted_at"], (SEED, attempts)
        assert len(attempts) <= 3, (SEED, attempts)
    kinds = Counter(entry.kind for entry in accounts.statement(running.services, "owner", limit=10 * JOBS))
    assert (kinds["hold"], kinds["settle"]) == (JOBS, ends["ready"]), (SEED, kinds)
    assert accounts.balance(running.services, "owner").held == 0
    assert sweeps.run_audit(running.services) == []
    assert ends["ready"] > JOBS // 4, (SEED, Counter(str(view["failure"]) for view in views))


def over_a_fixed_server_that_fails(base_model: Path, tmp_path: Path) -> None:
    with (
        fake_pod(tmp_path / "pod", faults=SEED, slots=8, hang=3, seconds_per_step=0.02) as pod,
        site(tmp_path / "site", base_model, start=START, **STORM, **pod.environment) as running,
    ):
        job_ids = send_all(running)
        all_have_ended(running, job_ids)
        until(lambda: is_cleared(running, job_ids), TIME_S, f"the server is cleared, seed {SEED}")
        assert pod.left() == {"jobs": [], "datasets": [], "outputs": []}
        assert done_twice(pod.journal()) == []


def over_rented_pods_that_fail_and_vanish(base_model: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    faults = {"errors": 0.03, "lost_creates": 0.2, "sold_out_creates": 0.2, "failed_deletes": 0.3, "vanish": 0.3}
    few = {"IMPRINT_PODS_MAX": "3", "IMPRINT_POD_JOBS_MAX": "10"}
    with (
        runpod_server(tmp_path / "runpod", SEED, POD | {"journal": str(journal)}, last_s=30, **faults) as runpod,
        site(tmp_path / "site", base_model, start=START, **STORM, **few, **runpod.environment) as running,
    ):
        job_ids = send_all(running)
        all_have_ended(running, job_ids)
        until(lambda: runpod.left() == [], 120, f"no pod is left, seed {SEED}")
        until(lambda: is_cleared(running, job_ids), 60, f"and nothing is to be cleared, seed {SEED}")
        assert done_twice(map(json.loads, journal.read_text().splitlines())) == []
        print(f"{len(runpod.ledger())} pods were rented")


STORMS = [over_a_fixed_server_that_fails, over_rented_pods_that_fail_and_vanish]


@pytest.mark.parametrize("storm", STORMS if "REMOTE_JOBS" in os.environ else sample(STORMS, 1, "storms"))
def test_every_job_ends(storm: Callable[[Path, Path], None], base_model: Path, tmp_path: Path) -> None:
    storm(base_model, tmp_path)
