"""The simulation of the fleet: its figures add up, and it finds the part that is too small."""

from dataclasses import replace

from benchmarks.fleet import Costs, Layout, measure

COSTS = Costs(train_s=80.0)


def test_the_gpus_are_as_busy_as_the_jobs_keep_them() -> None:
    found = measure(COSTS, gpus=50, jobs_per_day=40_000, seconds=3600)
    # 40,000 jobs of 80 s on 50 GPUs; the first ones begin at an idle fleet.
    assert 0.68 <= found["gpu_busy"] <= 0.76
    assert found["parts"]["gpu"]["wait_p95_ms"] < 1000
    assert found["limit_jobs_per_day"] > 40_000


def test_a_part_that_is_too_small_is_found_with_its_limit() -> None:
    slow = replace(COSTS, decide_ms=900.0)  # two for each job: 48,000 jobs a day fill it
    found = measure(slow, gpus=50, jobs_per_day=60_000, seconds=3600)
    assert found["first"] == "deciders"
    assert 45_000 <= found["limit_jobs_per_day"] <= 66_000
    assert found["parts"]["deciders"]["busy"] > 0.95
    assert found["parts"]["deciders"]["wait_p95_ms"] > 60_000, "a queue that only grows"
    more = measure(slow, 50, 60_000, 3600, replace(Layout.of(50), deciders=2))
    assert more["parts"]["deciders"]["wait_p95_ms"] < 10_000
