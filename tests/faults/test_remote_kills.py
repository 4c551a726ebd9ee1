"""kill -9 of the worker at each point of a remote training where it speaks to the server, before and after the deed.

The job goes on where it stood, ends ready, is charged once, was made and started once, and leaves nothing there.
`make test` draws one kill of each of the four groups; `make test-full` kills after each deed, or in its middle;
`make faults-remote` (REMOTE_JOBS) before it, too.
"""

import os
from pathlib import Path

import pytest

from jobs.lifecycle import sweeps
from jobs.owners import accounts
from tests.samples import FULL, sample
from tests.servers.fake_pod import FakePod, fake_pod
from tests.servers.gate import Hold, gate
from tests.servers.remote import ENVIRONMENT, START, done_twice, is_cleared, remote_runs
from tests.site import Site, site, until

pytestmark = pytest.mark.drawn

POINTS = {
    "dataset": [
        Hold("GET", "/api/settings", "before"),
        Hold("POST", "/api/datasets/create", "after"),
        Hold("POST", "/api/datasets/upload", "before"),
        Hold("POST", "/api/datasets/upload", "after"),
    ],
    "job": [
        Hold("POST", "/api/jobs", "before"),
        Hold("POST", "/api/jobs", "after"),
        Hold("GET", "/start", "before"),
        Hold("GET", "/start", "after"),
        Hold("GET", "/api/queue/0/start", "before"),
        Hold("GET", "/api/queue/0/start", "after"),
    ],
    "file": [
        Hold("GET", "/files", "before"),
        Hold("GET", ".safetensors", "before"),
        Hold("GET", ".safetensors", "middle"),
        Hold("GET", ".safetensors", "after"),
    ],
    "clearing": [
        Hold("GET", "/delete", "before"),
        Hold("GET", "/delete", "after"),
        Hold("POST", "/api/datasets/delete", "before"),
        Hold("POST", "/api/datasets/delete", "after"),
    ],
}


ALL = "REMOTE_JOBS" in os.environ
MATRIX = {name: [hold for hold in holds if ALL or hold.when != "before"] for name, holds in POINTS.items()}
DRAWN = [hold for name, holds in POINTS.items() for hold in sample(holds, 1, f"remote kills, {name}")]
CASES = MATRIX if ALL or FULL else {"one of each": DRAWN}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("points", CASES.values(), ids=CASES)
def test_killed_while_speaking_to_the_server(base_model: Path, tmp_path: Path, points: list[Hold]) -> None:
    with fake_pod(tmp_path / "pod", seconds_per_step=0.01, slots=2) as pod, gate(pod.url) as gated:
        here = ENVIRONMENT | pod.environment | {"IMPRINT_AI_TOOLKIT_URL": gated.url}
        with site(tmp_path / "site", base_model, start=START, **here) as running:
            running.grant("owner")
            images = running.pictures("owner")
            job_ids = []
            for hold in points:
                gated.hold(hold)
                job_ids.append(running.send(images=images, max_steps=10)["job_id"])
                assert gated.reached.wait(90), f"{hold}: {running.view(job_ids[-1])}"
                running.kill("io")
                gated.release()
                running.start("io")
                view = running.wait(job_ids[-1])
                assert view["status"] == "ready", (hold, view["failure"])
                # A run that was submitted is not submitted anew for the death of a worker.
                assert [run["attempt"] for run in remote_runs(running, job_ids[-1])] == [1], hold
            nothing_is_left(running, pod, job_ids)


def nothing_is_left(running: Site, pod: FakePod, job_ids: list[str]) -> None:
    until(lambda: is_cleared(running, job_ids), 60, "the server is cleared")
    assert pod.left() == {"jobs": [], "datasets": [], "outputs": []}
    assert done_twice(pod.journal()) == []
    kinds = [entry.kind for entry in accounts.statement(running.services, "owner")]
    assert kinds.count("settle") == kinds.count("hold") == len(job_ids)
    assert accounts.balance(running.services, "owner").held == 0
    assert sweeps.run_audit(running.services) == []
    until(lambda: all(len(running.left_behind(job_id)) == 1 for job_id in job_ids), 60, "nothing left but the files")
