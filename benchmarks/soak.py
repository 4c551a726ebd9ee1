"""`make soak`: a week of jobs in as short a time as the machine takes, and whether anything grows that should not.

The whole stack trains JOBS jobs (5,000: a week of thirty an hour) on the tiny base model, a few at a time, or as many
as begin in MINUTES. Every tenth is cancelled. BASES base models take turns in the one training worker. The last line
is one JSON object. For each process: `rss_mb` (memory that is not shared, with all children), `descriptors` and
`threads`; `redis_keys` without an end, and `redis_keys_that_expire`; `rows` of the database; `files` by folder below
the home folder: each as `[after a quarter of the jobs, at the end, growth per 1000 jobs]`. `grown` names what did not
stay level: memory by more than a tenth and 30 MB, anything else by more than 20. Rows, keys that expire within a day,
models and logs grow with the jobs, and are not named. The exit code is 1 if something is named.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.home import settle
from benchmarks.pipeline import picture

OWNER = "soak"
AT_ONCE = 8
SAMPLES = 40  # at least, if there are as many jobs
_SAMPLE_JOBS = 25  # at most between two samples: a run may end before its last job
_PICTURE_SETS = 20
# These grow with every job.
_GROWS = ("rows", "redis_keys_that_expire", "files.store/models", "files.logs")

Sample = dict[str, float]


def main() -> int:
    """Run the soak in an isolated home folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--bases", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="imprint-soak-") as folder:
        settle(Path(folder), IMPRINT_IO_CONCURRENCY="2")
        names = _name_bases(Path(folder), options.bases)
        result = _run(options.jobs, names, options.minutes)
    print(json.dumps(result))
    return 1 if result["grown"] or result["failed"] or result["audit"] else 0


def _name_bases(folder: Path, count: int) -> list[str]:
    """Base models of the operator: copies of the tiny one."""
    locations = {f"base-{number}": folder / "bases" / str(number) for number in range(count)}
    for location in locations.values():
        shutil.copytree(folder / "base", location, copy_function=os.link)
    os.environ["IMPRINT_BASE_MODELS"] = json.dumps({name: str(location) for name, location in locations.items()})
    return list(locations)


def _run(count: int, bases: list[str], minutes: float) -> dict[str, Any]:
    from cli.stack import running
    from core.settings import settings
    from jobs import service
    from jobs.lifecycle import sweeps
    from jobs.owners import accounts
    from jobs.services import services

    begun = time.monotonic()
    samples: list[tuple[int, Sample]] = []
    with running(settings(), flower=False, web=True) as stack:
        import tasks.relay  # noqa: F401 - sends what is submitted here

        here = services()
        accounts.grant(here, OWNER, 1000 * count)
        sets = [_stored(number) for number in range(_PICTURE_SETS)]
        sent = 0
        every = max(min(count // SAMPLES, _SAMPLE_JOBS), 1)
        while (active := len(service.jobs(here, owner_id=OWNER, active=True, limit=AT_ONCE))) or sent < count:
            for _ in range(min(AT_ONCE - active, count - sent)):
                job_id = service.submit(here, _request(sent, sets, bases)).job_id
                sent += 1
                if sent % 10 == 0:
                    service.cancel(here, job_id)
                if sent % every == 0:
                    samples.append((sent, _sample(stack)))
                    print(f"{sent} jobs after {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
            if time.monotonic() - begun > 60 * minutes:
                count = sent
            time.sleep(0.05)
        samples.append((sent, _sample(stack)))
        ended = _ended()
        findings = [str(finding) for finding in sweeps.run_audit(here)]
    return {
        "jobs": sent, "bases": len(bases), "seconds": round(time.monotonic() - begun, 1),
        "ready": ended["ready"], "cancelled": ended["cancelled"], "failed": ended["failed"], "audit": findings,
        **_summary(samples),
    }  # fmt: skip


def _stored(number: int) -> list[str]:
    from jobs.services import services
    from jobs.stages import intake

    return [intake.store_picture(services(), OWNER, "soak", picture("soak", number, at)) for at in range(5)]


def _request(number: int, sets: list[list[str]], bases: list[str]) -> dict[str, Any]:
    recipe = {"base_model": bases[number % len(bases)], "family": "sd15", "trigger_word": "imp", "resolution": 64}
    images = sets[number % len(sets)]
    return {"owner_id": OWNER, "subject_id": "soak", "images": images, "max_steps": 1, "seed": number, **recipe}


# ---- what is measured ---------------------------------------------------------------------------------------------


def _sample(stack: Any) -> Sample:
    found: Sample = {}
    for member in stack.members:
        processes = process_tree(member.process.pid)
        found[f"rss_mb.{member.name}"] = sum(map(_memory_mb, processes))
        found[f"descriptors.{member.name}"] = sum(len(_entries(pid, "fd")) for pid in processes)
        found[f"threads.{member.name}"] = sum(len(_entries(pid, "task")) for pid in processes)
    return found | _redis() | _rows() | _files()


def process_tree(pid: int) -> list[int]:
    """A process and all its children."""
    found = [pid]
    for parent in found:
        for task in _entries(parent, "task"):
            try:
                found += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
            except OSError:  # it has just ended
                continue
    return found


def _entries(pid: int, name: str) -> list[str]:
    try:
        return [entry.name for entry in Path(f"/proc/{pid}/{name}").iterdir()]
    except OSError:
        return []


def _memory_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def _redis() -> Sample:
    from tasks.app import app

    with app.connection_or_acquire() as connection:
        client = connection.default_channel.client
        found = client.info("keyspace").get("db0", {"keys": 0, "expires": 0})
    return {"redis_keys": found["keys"] - found["expires"], "redis_keys_that_expire": found["expires"]}


def _rows() -> Sample:
    import sqlalchemy as sa

    from jobs.services import services

    with services().database.reading() as session:
        tables = sa.inspect(session.connection()).get_table_names()
        count = {table: session.scalar(sa.select(sa.func.count()).select_from(sa.table(table))) for table in tables}
    return {f"rows.{table}": float(number or 0) for table, number in count.items()}


def _files() -> Sample:
    from core.settings import settings

    home = settings().home
    found: Counter[str] = Counter()
    for folder, _, files in os.walk(home):
        parts = Path(folder).relative_to(home).parts
        found["/".join(parts[:2] if parts[:1] == ("store",) else parts[:1])] += len(files)
    return {f"files.{name or 'home'}": float(number) for name, number in found.items()}


def _ended() -> Counter[str]:
    import sqlalchemy as sa
    from sqlmodel import col

    from jobs.services import services
    from storage.tables.jobs import Job

    with services().database.reading() as session:
        return Counter(map(str, session.execute(sa.select(col(Job.status))).scalars()))


def _summary(samples: list[tuple[int, Sample]]) -> dict[str, Any]:
    """Each measure after a quarter of the jobs and at the end, its slope between, and the names of those that grew."""
    late = samples[len(samples) // 4 :]
    names = sorted({name for _, sample in late for name in sample})
    table: dict[str, Any] = {}
    grown = []
    for name in names:
        points = [(jobs, sample.get(name, 0.0)) for jobs, sample in late]
        third = max(len(points) // 3, 1)
        # The middle of several samples: one may have met a moment of much work.
        first, last = (_middle([value for _, value in part]) for part in (points[:third], points[-third:]))
        head, _, rest = name.partition(".")
        entry = [round(first, 1), round(last, 1), round(1000 * _slope(points), 2)]
        if rest:
            table.setdefault(head, {})[rest] = entry
        else:
            table[head] = entry
        allowed = 0.1 * first + 30 if head == "rss_mb" else 20
        if not name.startswith(_GROWS) and last - first > allowed:
            grown.append(name)
    return {"grown": grown, **table}


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _slope(points: list[tuple[int, float]]) -> float:
    """Least squares: growth per job."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


if __name__ == "__main__":
    sys.exit(main())
