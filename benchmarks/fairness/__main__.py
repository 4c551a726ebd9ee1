"""Measure four cases: nine owners with five jobs alone, and beside one with 500; both again while things are killed.

A wait is the time from the acceptance of a job to the start of its training, in ticks of the simulation. `busy` is the
part of the slots that trained while jobs waited. In the last two cases three schedulers, the workers and PostgreSQL are
killed at random moments, at the same ticks in both.

The last line is one JSON object. `fair` says whether the p95 wait of the nine is within 1.5 times of what it is alone,
with and without kills, and the slots are as busy. After each case every job must be ready, trained and charged once, in
the order of its owner, with its entries in the audit log.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.fairness.checks import check
from benchmarks.fairness.kills import KillPlan
from benchmarks.fairness.simulation import Outcome, Simulation
from benchmarks.fairness.workers import InOwnProcess, InProcess, Steps
from core.settings import Settings
from jobs.services import Services
from tests.servers.postgres import PostgresServer, new_database, postgres_node

SMALL = {f"small{number}": 5 for number in range(9)}
_WORKERS = 2
_SCHEDULERS = 3


def main() -> int:
    """Measure the four cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=4, help="of each of the two workers")
    parser.add_argument("--big", type=int, default=500, help="jobs of the owner with many")
    parser.add_argument("--seed", type=int, default=7, help="of what is killed when")
    options = parser.parse_args()
    result: dict[str, float | int | bool] = {"slots": options.slots * _WORKERS, "big": options.big}
    beside = {"big": options.big} | SMALL
    with tempfile.TemporaryDirectory(prefix="imprint-bench-") as folder, postgres_node() as server:
        for name, jobs in (("alone", SMALL), ("beside", beside), ("alone_killed", SMALL), ("beside_killed", beside)):
            begun = time.monotonic()
            plan = KillPlan(0.5, 0.05, 0.03, lambda: _restart(server), options.seed) if "killed" in name else KillPlan()
            settings = Settings(_env_file=None, home=Path(folder) / name, database_url=new_database(server.address))
            outcome = measure(settings, options.slots, jobs, plan)
            result[f"{name}_p95_ticks"], result[f"{name}_busy"] = outcome.p95(SMALL), round(outcome.busy, 3)
            print(
                f"{name:14} p95 {outcome.p95(SMALL):5.1f} ticks, busy {outcome.busy:.3f}, "
                f"{time.monotonic() - begun:5.1f} s, killed {plan.done}", flush=True,
            )  # fmt: skip
            if name == "beside":
                result |= {f"expected_{of}_error": round(outcome.mean_error(of), 3) for of in ("start", "end")}
    result |= {f"{what}s_killed": count for what, count in plan.done.items()}
    result["fair"] = all(
        result[f"beside{case}_p95_ticks"] <= 1.5 * result[f"alone{case}_p95_ticks"]
        and result[f"beside{case}_busy"] >= least
        for case, least in (("", 0.95), ("_killed", 0.9))  # a killed worker trains nothing for a tick
    )
    print(json.dumps(result))
    return 0 if result["fair"] else 1


def measure(settings: Settings, slots: int, jobs: dict[str, int], plan: KillPlan) -> Outcome:
    """One case, on an empty database."""
    services = Services(settings)
    services.database.migrate()
    killed = plan.schedulers > 0
    workers: list[Steps] = [
        InOwnProcess(settings, f"worker{number}") if killed else InProcess(services, f"worker{number}")
        for number in range(_WORKERS)
    ]
    schedulers: list[Steps] = [InOwnProcess(settings, f"scheduler{n}") for n in range(_SCHEDULERS if killed else 0)]
    try:
        outcome = Simulation(services, workers, slots, schedulers, plan).run(jobs)
        check(services, sum(jobs.values()))
    finally:
        for process in (*workers, *schedulers):
            process.close()
        services.database.close()
    return outcome


def _restart(server: PostgresServer) -> None:
    server.kill()
    server.start()


if __name__ == "__main__":
    sys.exit(main())
