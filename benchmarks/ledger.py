"""`make bench-ledger`: ledger operations per second, on PostgreSQL and SQLite.

A private PostgreSQL (fsync on) and an SQLite file (WAL, synchronous FULL), migrated as in production. Processes hold
and settle for a few seconds, each movement in its own transaction: a pair counts as **two operations**. Either all
use one account (*hot*), where they queue, or they are spread over 200 accounts. After each run the ledger is
audited. The last line is one JSON object: for each case operations per second and the latency of one operation
(`p50_ms`, `p99_ms`), and `floor_met`: at least 100 a second on one hot account on both databases, whatever the number
of processes.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import quantiles

from core.clock import utcnow
from credits import ledger
from credits.audit import audit
from storage.database import Database
from tests.servers.postgres import new_database, postgres_server

FLOOR_PER_S = 100
_ACCOUNTS = {"hot": 1, "spread": 200}
_PROCESSES = {"postgres": (1, 8), "sqlite": (1, 4)}
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Measured:
    """One case: operations per second, and latencies of one operation in milliseconds."""

    name: str
    processes: int
    per_s: float
    p50_ms: float
    p99_ms: float


def main() -> int:
    """Measure every case; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each of the eight cases runs")
    options = parser.parse_args()
    measured = []
    with tempfile.TemporaryDirectory(prefix="imprint-bench-") as folder:
        for database in _PROCESSES:
            with _server(database, Path(folder)) as server:
                for accounts in _ACCOUNTS:
                    for processes in _PROCESSES[database]:
                        address = _empty(server, Path(folder), f"{accounts}-{processes}")
                        case = _measure(address, database, accounts, processes, options.seconds)
                        print(
                            f"{case.name:16} processes {processes} {case.per_s:8.1f} operations/s"
                            f"   p50 {case.p50_ms:7.2f} ms   p99 {case.p99_ms:8.2f} ms",
                            flush=True,
                        )
                        measured.append(case)
    print(json.dumps(_summary(measured)))
    return 0


def _summary(measured: list[Measured]) -> dict[str, float | int | bool]:
    """The results by case and number of processes, and by case alone for the most processes."""
    result: dict[str, float | int | bool] = {}
    for case in measured:
        result[f"{case.name}_per_s"] = case.per_s  # the one with the most processes comes last
        for what in ("per_s", "p50_ms", "p99_ms"):
            result[f"{case.name}_{case.processes}p_{what}"] = getattr(case, what)
    result["floor_per_s"] = FLOOR_PER_S
    result["floor_met"] = all(case.per_s >= FLOOR_PER_S for case in measured if case.name.endswith("hot"))
    return result


@contextmanager
def _server(database: str, folder: Path) -> Iterator[str | None]:
    """The address of a private PostgreSQL; None for SQLite, which needs no server."""
    if database == "sqlite":
        yield None
        return
    with postgres_server() as server:
        yield server


def _empty(server: str | None, folder: Path, name: str) -> str:
    """The address of a new, migrated, empty database."""
    address = new_database(server) if server else f"sqlite:///{folder}/{name}.db"
    database = Database(address)
    database.migrate()
    database.close()
    return address


def _measure(address: str, kind: str, accounts: str, processes: int, seconds: float) -> Measured:
    owners = [f"owner{number}" for number in range(_ACCOUNTS[accounts])]
    database = Database(address)
    for owner_id in owners:
        with database.writing() as session:
            ledger.grant(session, owner_id, 10**9, key="grant")
    database.close()
    together = _FORK.Barrier(processes)
    children = []
    for worker in range(processes):
        ours, theirs = _FORK.Pipe(duplex=False)
        child = _FORK.Process(target=_work, args=(address, worker, owners, seconds, together, theirs))
        child.start()
        theirs.close()
        children.append((child, ours))
    latencies: list[float] = []
    spans: list[tuple[float, float]] = []
    for child, ours in children:
        took, span = ours.recv()
        latencies += took
        spans.append(span)
        child.join()
    database = Database(address)
    with database.reading() as session:
        findings = audit(session)
    database.close()
    if findings:
        raise SystemExit(f"the ledger is inconsistent: {findings[0]}")
    wall_s = max(end for _, end in spans) - min(begun for begun, _ in spans)
    cuts = quantiles(latencies, n=100)
    return Measured(
        f"{kind}_{accounts}",
        processes,
        round(len(latencies) / wall_s, 1),
        round(1e3 * cuts[49], 2),
        round(1e3 * cuts[98], 2),
    )


def _work(address: str, worker: int, owners: list[str], seconds: float, together: Barrier, answer: Connection) -> None:
    """Hold and settle alternately until the time is over; returns the seconds of each operation, and start and end."""
    database = Database(address)
    took: list[float] = []
    expires_at = utcnow() + timedelta(days=1)

    def hold(turn: int) -> str:
        owner_id, training_id = owners[(worker + turn) % len(owners)], f"{worker}/{turn}"
        with database.writing() as session:
            return ledger.hold(session, owner_id, training_id, 3, key=training_id, expires_at=expires_at)

    def settle(hold_id: str) -> None:
        with database.writing() as session:
            ledger.settle(session, hold_id, 2)

    settle(hold(-1))  # connected, and everything compiled
    together.wait()
    begun, turn = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        before = time.perf_counter()
        hold_id = hold(turn)
        between = time.perf_counter()
        settle(hold_id)
        took += [between - before, time.perf_counter() - between]
        turn += 1
    answer.send((took, (begun, time.monotonic())))


if __name__ == "__main__":
    sys.exit(main())
