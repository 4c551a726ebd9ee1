"""`python -m benchmarks.fleet`: what saturates first between ten GPUs and a thousand with a million jobs a day.

A simulation of discrete events. Jobs arrive at random, each passes the parts of Imprint that it uses, and each part has
so many servers and a queue. What a job costs in each part is measured (`make bench-latency`, `make bench-scale`); the
defaults are the figures of docs/scaling.md, and `--costs` reads others from a JSON file. For each size the table has
how busy each part is, the 95th percentile of what its visitors wait, and how many jobs a day would fill it.

The last line is one JSON object: `sizes` with `gpus`, `jobs_per_day`, `gpu_busy`, `first` (the busiest part besides the
GPUs), `limit_jobs_per_day` (where that part saturates) and `parts`.
"""

import argparse
import heapq
import json
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

DAY_S = 86_400.0
# GPUs and jobs a day. A GPU that trains one LoRA at a time in 80 s does 1,080 a day.
SIZES = ((10, 10_000), (100, 100_000), (1_000, 1_000_000))


@dataclass(frozen=True)
class Costs:
    """What one job needs, in milliseconds of one server of a part."""

    train_s: float = 78.0
    pictures: int = 10
    web_ms: float = 30.0  # accepting it
    decide_ms: float = 48.0  # each decision: when a job comes, and when one leaves its GPU. One at a time for a family
    io_ms: float = 80.0  # dataset, upload, settle, clean-up with their messages
    fetch_ms: float = 19.0  # each picture: fetch, decode, record
    notice_ms: float = 12.0  # each of two webhooks
    message_ms: float = 0.1  # of the broker, for each Celery message
    messages: int = 12
    transaction_ms: float = 1.2  # of a core of the database
    transactions: int = 18
    transactions_per_picture: int = 2
    report_s: float = 1.0  # between two reports of progress of a training
    renewals_s: float = 8.3  # between two renewals of a lease, and of a worker's heartbeat


@dataclass(frozen=True)
class Layout:
    """How many servers each part has: processes, threads that compute, or cores."""

    web: int = 2
    io: int = 4
    fetch: int = 4
    notices: int = 4
    broker: int = 1
    database: int = 8
    deciders: int = 1  # one for each installation

    @classmethod
    def of(cls, gpus: int) -> "Layout":
        """A layout that grows with the GPUs: a web, an io and a fetch core for 25 of them; the rest stays."""
        more = max(gpus // 25, 2)
        return cls(web=more, io=2 * more, fetch=2 * more, notices=2 * more)


# What to do about each part.
REMEDIES = {
    "gpu": "more training workers: start them",
    "web": "more web processes behind the proxy",
    "io": "more io workers, or IMPRINT_IO_CONCURRENCY",
    "fetch": "more fetch workers",
    "notices": "a fetch worker with `-Q notices` alone",
    "broker": "a broker and a database for each group of owners (several installations)",
    "database": "more cores; then IMPRINT_HISTORY_DAYS, then an installation for each group of owners",
    "deciders": "several installations, each with its own owners: decisions are made one at a time",
}


@dataclass
class Part:
    """Servers with one queue."""

    name: str
    servers: int
    free: int = 0
    waiting: deque[tuple[float, Callable[[], None]]] = field(default_factory=deque)
    waits: list[float] = field(default_factory=list)
    busy_s: float = 0.0

    def __post_init__(self) -> None:
        self.free = self.servers


class Fleet:
    """The simulation. A job is a generator of visits: the name of a part, and the seconds that it takes there."""

    def __init__(self, costs: Costs, layout: Layout, gpus: int, seed: int = 7) -> None:
        self.costs, self.now = costs, 0.0
        self.parts = {name: Part(name, servers) for name, servers in {"gpu": gpus, **asdict(layout)}.items()}
        self.done = 0
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def run(self, jobs_per_day: float, seconds: float) -> None:
        """Let jobs arrive for so long."""
        rate = jobs_per_day / DAY_S
        self._at(self._random.expovariate(rate), lambda: self._arrive(rate, seconds))
        while self._events and self._events[0][0] <= seconds:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
        self.now = seconds

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happen))

    def _arrive(self, rate: float, until: float) -> None:
        self._advance(self._job())
        if self.now < until:
            self._at(self.now + self._random.expovariate(rate), lambda: self._arrive(rate, until))

    def _job(self) -> Iterator[tuple[str, float]]:
        costs, transaction = self.costs, self.costs.transaction_ms / 1e3
        yield "web", costs.web_ms / 1e3
        yield "database", 4 * transaction
        yield "deciders", costs.decide_ms / 1e3
        yield "broker", costs.messages * costs.message_ms / 1e3
        yield "fetch", costs.pictures * costs.fetch_ms / 1e3
        yield "database", costs.pictures * costs.transactions_per_picture * transaction
        yield "io", 0.3 * costs.io_ms / 1e3
        train_s = self._random.uniform(0.5, 1.5) * costs.train_s
        yield "gpu", train_s
        # Reports of progress, and renewals of the lease. They came during the training, which waits for none of them.
        yield "database", train_s * (1 / costs.report_s + 2 / costs.renewals_s) * transaction
        yield "deciders", costs.decide_ms / 1e3
        yield "io", 0.7 * costs.io_ms / 1e3
        yield "database", (costs.transactions - 4) * transaction
        yield "notices", 2 * costs.notice_ms / 1e3
        self.done += 1

    def _advance(self, job: Iterator[tuple[str, float]]) -> None:
        visit = next(job, None)
        if visit is None:
            return
        part, takes_s = self.parts[visit[0]], visit[1]

        def leave() -> None:
            part.free += 1
            part.busy_s += takes_s
            if part.waiting:
                since, begin = part.waiting.popleft()
                part.waits.append(self.now - since)
                begin()
            self._advance(job)

        def begin() -> None:
            part.free -= 1
            self._at(self.now + takes_s, leave)

        if part.free:
            part.waits.append(0.0)
            begin()
        else:
            part.waiting.append((self.now, begin))


def measure(costs: Costs, gpus: int, jobs_per_day: int, seconds: float, layout: Layout | None = None) -> dict[str, Any]:
    """One size: how busy each part is, and which one saturates first."""
    fleet = Fleet(costs, layout or Layout.of(gpus), gpus)
    fleet.run(jobs_per_day, seconds)
    parts = {}
    for part in fleet.parts.values():
        waits = sorted(part.waits) or [0.0]
        busy = part.busy_s / part.servers / seconds
        parts[part.name] = {
            "servers": part.servers,
            "busy": round(busy, 3),
            "wait_p95_ms": round(1e3 * waits[int(0.95 * (len(waits) - 1))], 1),
            "limit_jobs_per_day": round(jobs_per_day / busy) if busy else None,
        }
    others = {name: found for name, found in parts.items() if name != "gpu"}
    first = max(others, key=lambda name: float(others[name]["busy"] or 0))
    return {
        "gpus": gpus, "jobs_per_day": jobs_per_day, "done": fleet.done, "gpu_busy": parts["gpu"]["busy"],
        "first": first, "limit_jobs_per_day": parts[first]["limit_jobs_per_day"], "parts": parts,
    }  # fmt: skip


def main() -> int:
    """Simulate each size; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900.0, help="simulated time of each size")
    parser.add_argument("--costs", type=Path, help="a JSON file with measured costs; see Costs")
    options = parser.parse_args()
    costs = replace(Costs(), **json.loads(options.costs.read_text())) if options.costs else Costs()
    sizes = []
    for gpus, jobs_per_day in SIZES:
        found = measure(costs, gpus, jobs_per_day, options.seconds)
        sizes.append(found)
        _print(found)
    print(json.dumps({"costs": asdict(costs), "sizes": sizes}))
    return 0


def _print(found: Mapping[str, Any]) -> None:
    print(f"\n{found['gpus']} GPUs, {found['jobs_per_day']:,} jobs a day")
    print(f"{'part':10} {'servers':>8} {'busy':>6} {'waits p95':>10}  saturates at")
    for name, part in found["parts"].items():
        limit = f"{part['limit_jobs_per_day']:,} jobs a day" if part["limit_jobs_per_day"] else ""
        print(f"{name:10} {part['servers']:8} {part['busy']:6.0%} {part['wait_p95_ms']:7.0f} ms  {limit}")
    print(f"first besides the GPUs: {found['first']} -> {REMEDIES[found['first']]}")


if __name__ == "__main__":
    sys.exit(main())
