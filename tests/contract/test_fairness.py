"""Owners with few jobs beside one with many, on simulated workers: `make bench-fair` in small."""

from collections.abc import Iterator

import pytest

from benchmarks.fairness.checks import check
from benchmarks.fairness.kills import KillPlan
from benchmarks.fairness.simulation import Outcome, Simulation
from benchmarks.fairness.workers import InProcess
from core.settings import Settings
from jobs.admission import places, statement, workers
from jobs.services import Services
from tests.servers.databases import address, postgres

pytestmark = pytest.mark.both_databases

__all__ = ["address", "postgres"]
SMALL = {"ada": 3, "bob": 3, "eve": 3}


def run(services: Services, jobs: dict[str, int], plan: KillPlan | None = None) -> Outcome:
    outcome = Simulation(services, [InProcess(services, "worker")], 2, plan=plan).run(jobs)
    check(services, sum(jobs.values()))
    return outcome


@pytest.fixture
def services(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    # No second of the machine's time decides: ten ticks may take longer than a worker may be silent.
    monkeypatch.setattr(statement, "PREPARING_S", 3600.0)
    for module in (statement, places, workers):
        monkeypatch.setattr(module, "ALIVE_S", 3600.0)
    # Fewer beyond the slots than by default: with so few jobs, the three that were sent before are a large part.
    services = Services(settings.model_copy(update={"admission_ahead": 1}))
    yield services
    services.database.close()


def test_the_many_jobs_of_one_owner_hold_up_no_other(services: Services) -> None:
    outcome = run(services, {"big": 30} | SMALL)
    assert outcome.p95(SMALL) <= 1.5 * 9 * 4 / 2, (
        outcome.waits
    )  # alone, the last of nine jobs on two slots starts at 17
    assert outcome.busy >= 0.95
    # What owners are told when all jobs wait is off by a twentieth of the mean wait: trainings are a quarter off.
    assert len(outcome.errors["start"]) > 25
    assert outcome.mean_error("start") < 0.1
    assert outcome.mean_error("end") < 0.1


def test_workers_that_die_lose_no_job_and_train_none_twice(services: Services) -> None:
    plan = KillPlan(workers=0.1)
    run(services, {"big": 10} | SMALL, plan)
    assert plan.done["worker"] > 0
