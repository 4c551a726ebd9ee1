"""`make bench-scale`: 20,000 waiting jobs of 500 owners and 200 simulated workers, on PostgreSQL, as JSON.

Jobs, leases, transitions, admission, credits and messages are real. Only pictures are not decoded, and a simulated
trainer waits its time. A hundred jobs are accepted as ever; the others, and finished ones, are copies of their rows,
and have no credits held. Measured with 2,000 and 20,000 waiting jobs, and again beside 100,000 finished ones:

- on an idle database: `submit`, `status` and `decide` (p50 and p99, in ms), and `sweep_s` (repair, admission, relay);
- `submit_p99_ms` and `status_p99_ms` again while 200 workers train (`busy_`), `admissions_per_s`, `transitions_per_s`,
  and `connections` of the database;
- `mb`: the size of each large table with its indexes.

`growth` divides each figure by the one with 2,000 jobs. The last line is one JSON object; the exit code is 1 if an aim
of docs/scaling.md is missed.
"""

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, SQLModel, col, select

from benchmarks.scale_workers import OWNERS, WORKERS, running_fleet, take_launches
from core.clock import utcnow
from core.settings import Settings
from jobs import service
from jobs.admission import workers
from jobs.admission.decide import may_have_room
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import intake
from storage.tables.jobs import Job, JobEvent, JobPicture, Stage, Status
from tests.servers.postgres import new_database, postgres_server

QUEUE = "train.sd15"
REAL = 100  # owners whose first job is accepted as ever. Their jobs are the oldest, so the workers get them first
AIMS = {"submit_p99_ms": 150.0, "busy_submit_p99_ms": 150.0, "sweep_s": 2.0, "decide_p50_ms": 20.0}
_TABLES = ("training_job", "job_picture", "job_event", "outbox_message", "credit_entry", "audit_entry")


def main() -> int:
    """Measure each size; the last line is JSON."""
    logging.disable(logging.ERROR)  # of copies, each of which was "delivered, but not charged"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=2_000)
    parser.add_argument("--large", type=int, default=20_000)
    parser.add_argument("--finished", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the workers train at each size")
    parser.add_argument("--train-s", type=float, default=10.0, help="the time of one training")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="imprint-bench-") as folder, postgres_server() as server:
        settings = Settings(_env_file=None, home=Path(folder), database_url=new_database(server))
        services = Services(settings)
        services.database.migrate()
        _accept_first_jobs(services)
        filled = REAL
        for name, waiting, finished in (
            ("small", options.small, 0), ("large", options.large, 0), ("finished", options.large, options.finished)
        ):  # fmt: skip
            _copy_jobs(services, max(waiting - filled, 0), f"w{filled}x", is_finished=False)
            filled = max(waiting, filled)
            _copy_jobs(services, finished, "f", is_finished=True)
            result[name] = _measure(services, options.seconds, options.train_s)
            print(f"{name}: {json.dumps(result[name])}", file=sys.stderr, flush=True)
        services.database.close()
    first = result["small"]
    result["growth"] = {
        name: {key: round(value / first[key], 2) for key, value in result[name].items() if _is_ratio(key, value, first)}
        for name in ("large", "finished")
    }
    missed = [
        f"{name}.{aim}" for name in ("large", "finished") for aim, most in AIMS.items() if result[name][aim] > most
    ]
    print(json.dumps(result | {"missed": missed}))
    return 1 if missed else 0


def _is_ratio(key: str, value: Any, first: dict[str, Any]) -> bool:
    return isinstance(value, float | int) and bool(first.get(key))


# ---- what is there ------------------------------------------------------------------------------------------------


def _request(owner: int, images: list[str]) -> dict[str, Any]:
    return {
        "owner_id": f"owner{owner}", "subject_id": "dog", "base_model": "sd15", "trigger_word": "sks",
        "images": images, "max_steps": 400,
    }  # fmt: skip


def _images(services: Services, owner: int) -> list[str]:
    return [intake.store_picture(services, f"owner{owner}", "dog", b"picture %d" % number) for number in range(5)]


def _accept_first_jobs(services: Services) -> None:
    for owner in range(REAL):
        accounts.grant(services, f"owner{owner}", 10**6)
        service.submit(services, _request(owner, _images(services, owner)))


def _copy_jobs(services: Services, count: int, suffix: str, *, is_finished: bool) -> None:
    """Copy the rows of the first jobs: the database does it, so that a hundred thousand take a minute."""
    times = -(-count // REAL)
    if not times:
        return
    now = utcnow()
    changed: dict[str, dict[str, Any]] = {table: {} for table in ("training_job", "outbox_message")}
    if is_finished:
        changed["training_job"] = {
            "status": Status.READY, "stage": Stage.SETTLE, "admitted_at": now, "started_at": now, "finished_at": now,
            "seconds_per_step": 0.025, "device": "simulated",
        }  # fmt: skip
    else:
        changed["training_job"] = {"created_at": now, "admitted_at": None, "status": Status.PENDING}
    changed["outbox_message"] = {"sent_at": now}
    with services.database.writing() as session:
        first = session.execute(sa.select(col(Job.id)).order_by(col(Job.created_at)).limit(REAL)).scalars().all()
        for table, kind in (("training_job", Job), ("job_picture", JobPicture), ("job_event", JobEvent)):
            _copy(session, kind, "id" if kind is Job else "job_id", list(first), times, suffix, changed.get(table, {}))
        message = SQLModel.metadata.tables["outbox_message"]
        _copy(session, message, "job_id", list(first), times, suffix, changed["outbox_message"])
    with services.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")


def _copy(
    session: Session, kind: Any, key: str, ids: list[str], times: int, suffix: str, changed: dict[str, Any]
) -> None:
    table = kind if isinstance(kind, sa.Table) else kind.__table__
    copies = sa.func.generate_series(1, times).table_valued(sa.column("n", sa.Integer)).render_derived(name="copies")
    number = copies.c.n
    end = sa.literal(suffix) + sa.cast(number, sa.String)
    columns = [column for column in table.c if not (column.name == "id" and column.autoincrement is True)]
    values = [
        sa.literal(changed[column.name], column.type)
        if column.name in changed
        else (column + end if column.name in (key, "id") else _owner(column, number))
        for column in columns
    ]
    chosen = sa.select(*values).select_from(table).join(copies, sa.true()).where(table.c[key].in_(ids))
    session.execute(sa.insert(table).from_select([column.name for column in columns], chosen))


def _owner(column: Any, number: Any) -> Any:
    """Copies belong to all owners in turn; any other column is copied as it is."""
    if column.name != "owner_id":
        return column
    first = sa.cast(sa.func.substr(column, len("owner") + 1), sa.Integer)
    return sa.literal("owner") + sa.cast((first + REAL * number) % OWNERS, sa.String)


# ---- what is measured ---------------------------------------------------------------------------------------------


def _measure(services: Services, seconds: float, train_s: float) -> dict[str, Any]:
    chance = random.Random(3)
    images = {owner: _images(services, owner) for owner in range(0, REAL, 4)}
    ids = _some_ids(services)

    def submit() -> None:
        owner = chance.choice(list(images))
        service.submit(services, _request(owner, images[owner]))

    def status() -> None:
        service.get(services, chance.choice(ids))

    def decide() -> None:
        with services.database.writing() as session:
            may_have_room(session, QUEUE)

    result: dict[str, Any] = {}
    for name, work, times in (("submit", submit, 60), ("status", status, 200), ("decide", decide, 60)):
        result |= _percentiles(name, [_seconds(work) for _ in range(times)])
    result["sweep_s"] = round(min(_seconds(lambda: _sweep(services)) for _ in range(3)), 3)
    result |= _busy(services, seconds, train_s, submit, status)
    with services.database.reading() as session:
        size = sa.text("SELECT pg_total_relation_size(CAST(:name AS regclass))")
        sizes = {name: session.execute(size, {"name": name}).scalar_one() for name in _TABLES}
    result["mb"] = {name: round(found / 2**20, 1) for name, found in sizes.items()}
    return result


def _some_ids(services: Services) -> list[str]:
    with services.database.reading() as session:
        return list(session.exec(select(Job.id).order_by(sa.func.random()).limit(300)))


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _percentiles(name: str, seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    cuts = {"p50": ordered[len(ordered) // 2], "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]}
    return {f"{name}_{cut}_ms": round(1e3 * value, 1) for cut, value in cuts.items()}


def _sweep(services: Services) -> None:
    sweeps.repair_jobs(services)
    sweeps.admit_jobs(services)
    take_launches(services, 1000)


def _busy(
    services: Services, seconds: float, train_s: float, submit: Callable[[], None], status: Callable[[], None]
) -> dict[str, Any]:
    """Submit and status while the workers train, and their rates."""
    for number in range(WORKERS):
        workers.beat(services, f"worker{number}", [QUEUE], 1)
    submits, statuses, sweep_s, connections = [], [], [], 0
    with running_fleet(services, train_s) as fleet:
        until = time.monotonic() + seconds
        began, counted_from = time.monotonic(), None
        while (now := time.monotonic()) < until:
            if counted_from is None and now - began > train_s:  # the first trainings end
                counted_from = (now, fleet.admitted(), fleet.transitions.value)
            submits.append(_seconds(submit))
            statuses += [_seconds(status) for _ in range(4)]
            sweep_s.append(_seconds(lambda: _sweep_beside(services)) if len(submits) % 20 == 0 else 0.0)
            connections = max(connections, _connections(services))
            time.sleep(0.1)
        begun, admitted, transitions_before = counted_from or (began, 0, 0)
        passed = time.monotonic() - begun
        rates = {
            "admissions_per_s": round((fleet.admitted() - admitted) / passed, 1),
            "transitions_per_s": round((fleet.transitions.value - transitions_before) / passed, 1),
        }
    for number in range(WORKERS):
        workers.leave(services, f"worker{number}")
    return {
        **_percentiles("busy_submit", submits), **_percentiles("busy_status", statuses),
        "busy_sweep_s": round(max(sweep_s), 3), **rates, "connections": connections,
    }  # fmt: skip


def _sweep_beside(services: Services) -> None:
    sweeps.repair_jobs(services)
    sweeps.admit_jobs(services)


def _connections(services: Services) -> int:
    with services.database.reading() as session:
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        return int(session.execute(sa.text(count)).scalar_one())


if __name__ == "__main__":
    sys.exit(main())
