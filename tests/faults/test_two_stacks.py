"""Two stacks with a broker each on one database and one store: both sweep and relay, and every job is done once."""

from pathlib import Path

import pytest

from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from tests.servers.postgres import new_database, postgres_server
from tests.site import site

pytestmark = pytest.mark.drawn

JOBS = 4


def test_each_job_is_trained_and_charged_once_and_one_stack_takes_over_from_the_other(
    base_model: Path, tmp_path: Path
) -> None:
    with postgres_server() as server:
        shared = {
            "IMPRINT_DATABASE_URL": new_database(server),
            "IMPRINT_STORE_URL": str(tmp_path / "store"),
            "IMPRINT_SWEEP_S": "2",
        }
        with (
            site(tmp_path / "one", base_model, **shared) as one,
            site(tmp_path / "two", base_model, **shared) as two,
        ):
            one.grant("owner")
            ids = [where.send(seed=seed)["job_id"] for where in (one, two) for seed in range(JOBS // 2)]
            long = one.send(max_steps=80)["job_id"]
            one.wait(long, lambda view: view["step"] > 0)
            for name in list(one.processes):
                one.kill(name)
            for job_id in (*ids, long):
                view = two.wait(job_id, timeout_s=240)
                assert view["status"] == "ready", view["failure"]
            kinds = [entry.kind for entry in accounts.statement(two.services, "owner", limit=100)]
            assert sorted(kinds) == ["grant", *["hold"] * (JOBS + 1), *["settle"] * (JOBS + 1)]
            for job_id in (*ids, long):
                ends = [event.data for event in service.events(two.services, job_id) if event.kind == "status"]
                assert [end["status"] for end in ends].count("ready") == 1
            assert sweeps.run_audit(two.services) == []
