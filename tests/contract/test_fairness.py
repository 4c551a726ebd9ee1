"""Owners with few jobs beside one with many, on simulated workers: `make bench-fair` in small."""

from collections.abc import Iterator

import pytest

from benchmarks.fairness import Simulation, check
from core.settings import Settings
from jobs.services import Services
from tests.servers.databases import address, postgres

__all__ = ["address", "postgres"]
SMALL = {"ada": 3, "bob": 3, "eve": 3}


def run(services: Services, jobs: dict[str, int], die: float = 0.0) -> tuple[float, float]:
    outcome = Simulation(services, 2, die).run(jobs)
    check(services, sum(jobs.values()))
    return outcome.p95(SMALL), outcome.busy


@pytest.fixture
def services(settings: Settings) -> Iterator[Services]:
    # Fewer beyond the slots than by default: with so few jobs, the three that were sent before are a large part.
    services = Services(settings.model_copy(update={"admission_ahead": 1}))
    yield services
    services.database.close()


def test_the_many_jobs_of_one_owner_hold_up_no_other(services: Services) -> None:
    """With workers that die during trainings: the sweep sends those jobs again, and the order stays."""
    p95, busy = run(services, {"big": 30} | SMALL)
    assert p95 <= 1.5 * 9 * 4 / 2, p95  # alone, the last of nine jobs on two slots starts at tick 17
    assert busy >= 0.95


def test_workers_that_die_lose_no_job_and_train_none_twice(services: Services) -> None:
    run(services, {"big": 10} | SMALL, die=0.05)
