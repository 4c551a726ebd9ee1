"""Four jobs sent at once train as one cohort, and a kill -9 in its middle costs none of them a step that was kept."""

from pathlib import Path
from typing import Any

import pytest

from jobs.lifecycle import sweeps
from jobs.owners import accounts
from tests.site import site, until

pytestmark = pytest.mark.drawn

# Past its first checkpoint after twelve steps, and long enough that a test can kill it before its end.
RECIPE: dict[str, Any] = {"max_steps": 80, "checkpoint_every": 2}


def test_four_jobs_train_as_one_and_outlive_a_kill(base_model: Path, tmp_path: Path) -> None:
    with site(tmp_path, base_model, IMPRINT_COHORT="4", IMPRINT_LEASE_S="5") as running:
        running.grant("owner")
        images = running.pictures("owner")
        # What each gives with nobody beside it, in the same four slots.
        alone = [running.wait(running.send(images=images, seed=seed, **RECIPE)["job_id"]) for seed in (1, 2)]
        jobs = [running.send(images=images, seed=seed, **RECIPE)["job_id"] for seed in (1, 2, 3, 4)]
        until(
            lambda: all(any(running.services.store.list(f"checkpoints/{job}/")) for job in jobs),
            240,
            "all four are past their first checkpoint",
        )
        assert [running.view(job)["status"] for job in jobs] == ["training"] * 4
        assert "4 job(s) in 4 slot(s)" in running.log("train").read_text()
        running.kill("train")
        running.start("train")
        views = [running.wait(job, timeout_s=240) for job in jobs]
        assert [view["status"] for view in views] == ["ready"] * 4, [view["failure"] for view in views]
        assert running.log("train").read_text().count("resumes at step") >= 4
        assert [view["lora"]["sha256"] for view in views[:2]] == [view["lora"]["sha256"] for view in alone]
        kinds = [entry.kind for entry in accounts.statement(running.services, "owner")]
        assert kinds.count("settle") == 6
        assert sweeps.run_audit(running.services) == []


def test_a_cohort_that_is_asked_to_stop_hands_all_over(base_model: Path, tmp_path: Path) -> None:
    with site(tmp_path, base_model, IMPRINT_COHORT="4", IMPRINT_LEASE_S="60") as running:
        running.grant("owner")
        images = running.pictures("owner")
        jobs = [running.send(images=images, seed=seed, **RECIPE)["job_id"] for seed in range(4)]
        for job in jobs:
            running.wait(job, lambda view: view["step"] > 5, timeout_s=240)
        assert running.stop("train", timeout_s=30) == 0
        assert all(any(running.services.store.list(f"checkpoints/{job}/")) for job in jobs)
        running.start("train")
        assert [running.wait(job, timeout_s=240)["status"] for job in jobs] == ["ready"] * 4
