"""`make bench-recovery`: how long a training is interrupted when its worker is killed (-9), at default settings.

Seven jobs train on seven workers, and seven more workers wait. In each of three rounds every training worker is killed,
each at a different moment within one period of the sweep. The time runs from the kill to the first step that another
worker reports. The last line is one JSON object: `kills, lease_s, sweep_s, resume_p50_s, resume_p99_s, redelivered,
executions_per_step`. `redelivered` counts the stage messages beyond one for each stage and picture.
`executions_per_step` is the number of claims of stages and pictures, divided by those that are necessary: one each, and
one more for each kill. So 1 means that no work was done twice.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from sqlmodel import col, select

from core.settings import Settings
from jobs import service
from storage.tables.jobs import Job, JobEvent, JobPicture
from tests.servers.redis import redis_server
from tests.site import Site, make_base, until

PICTURES = 6
# The defaults of everything that may matter here, instead of the short intervals of the tests.
DEFAULTS = ("lease_s", "sweep_s", "retry_base_s", "relaunch_after_s", "visibility_timeout_s")
_RECEIVED = re.compile(r"Task imprint\.(preprocess|dataset|train|upload|settle)\[\S+\] received")


@dataclass
class Kill:
    """A killed worker: its job, the time, and the last report of the job."""

    job_id: str
    worker: str
    at: float  # seconds since the epoch, as the events of jobs have it
    last_event: int
    resumed_s: float | None = None


def main() -> int:
    """Run the benchmark in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=7, help="trainings side by side; as many workers wait")
    parser.add_argument("--rounds", type=int, default=3, help="how often each training's worker is killed")
    options = parser.parse_args()
    defaults = {name: str(Settings.model_fields[name].default) for name in DEFAULTS}
    print("settings:", ", ".join(f"{name} {value}" for name, value in defaults.items()))
    with tempfile.TemporaryDirectory(prefix="imprint-bench-") as folder:
        place = Path(folder)
        with redis_server(place / "redis") as redis:
            environment = {f"IMPRINT_{name.upper()}": value for name, value in defaults.items()}
            site = Site(place / "site", make_base(place / "base"), redis.url, **environment)
            try:
                result = _run(site, options.jobs, options.rounds)
            finally:
                site.end()
    print(json.dumps(result))
    return 0


def _run(site: Site, count: int, rounds: int) -> dict[str, Any]:
    site.services.database.migrate()
    workers = [f"train-{number}" for number in range(2 * count)]
    for name in ("io", "beat", *workers):
        site.start(name, wait=False)
    for name in ("io", *workers):
        _wait_ready(site, name, 0)
    site.grant("owner")
    images = site.pictures("owner", PICTURES)
    jobs = [str(site.send(images=images, max_steps=100_000, seed=number)["job_id"]) for number in range(count)]
    kept = dict.fromkeys(jobs, 0)
    waits: list[float] = []
    marks: dict[str, int] = {}  # workers that were started again, and where in their logs
    for number in range(rounds):
        for name, mark in marks.items():
            _wait_ready(site, name, mark)
        _wait_for_checkpoints(site, kept)
        waits += _kill_all(site, jobs, marks, f"round {number + 1} of {rounds}")
    received = sum(len(_RECEIVED.findall(log.read_text())) for log in site.folder.glob("*.log"))
    claims, needed = _claims(site, jobs)
    for job_id in jobs:
        service.cancel(site.services, job_id)
    cuts = quantiles(waits, n=100, method="inclusive")
    return {
        "kills": len(waits),
        "lease_s": site.settings.lease_s,
        "sweep_s": site.settings.sweep_s,
        "resume_p50_s": round(cuts[49], 1),
        "resume_p99_s": round(cuts[98], 1),
        "redelivered": received - needed,
        "executions_per_step": round(claims / (needed + len(waits)), 3),
    }


def _wait_ready(site: Site, name: str, mark: int) -> None:
    until(lambda: b" ready." in site.log(name).read_bytes()[mark:], 240, f"{name} is ready")


def _wait_for_checkpoints(site: Site, kept: dict[str, int]) -> None:
    """Wait until each job has a checkpoint newer than its last known one: that resets its attempts."""

    def newer(job_id: str) -> bool:
        with site.services.database.reading() as session:
            return session.get_one(Job, job_id).checkpoint_step > kept[job_id]

    for job_id in kept:
        until(lambda job_id=job_id: newer(job_id), 240, f"a checkpoint of {job_id}")  # type: ignore[misc]
    for job_id in kept:
        with site.services.database.reading() as session:
            kept[job_id] = session.get_one(Job, job_id).checkpoint_step


def _kill_all(site: Site, jobs: list[str], marks: dict[str, int], round_: str) -> list[float]:
    """Kill the worker of every job, at different moments; returns the seconds until each resumes on another worker.

    A killed worker is restarted once its job has resumed, and waits in the next round.
    """
    chance = random.Random(round_)
    begun = time.monotonic()
    moments = sorted((chance.uniform(0, site.settings.sweep_s), job_id) for job_id in jobs)
    kills: list[Kill] = []
    deadline = begun + 240
    while moments or any(kill.resumed_s is None for kill in kills):
        if time.monotonic() > deadline:
            raise SystemExit(f"{round_}: not resumed: {[kill for kill in kills if kill.resumed_s is None]}")
        if moments and time.monotonic() - begun >= moments[0][0]:
            kills.append(_kill(site, moments.pop(0)[1]))
        for kill in kills:
            if kill.resumed_s is None and (event := _first_step(site, kill)) is not None:
                kill.resumed_s = event.at.timestamp() - kill.at
                print(f"{round_}: {kill.job_id} resumed after {kill.resumed_s:.1f} s", flush=True)
                marks[kill.worker] = site.log(kill.worker).stat().st_size
                site.start(kill.worker, wait=False)
        time.sleep(0.1)
    return [kill.resumed_s for kill in kills if kill.resumed_s is not None]


def _kill(site: Site, job_id: str) -> Kill:
    """Kill the worker that holds the job with signal 9."""
    with site.services.database.reading() as session:
        holder = session.get_one(Job, job_id).lease_holder or ""
    name = next(name for name, process in site.processes.items() if holder.endswith(f"/{process.pid}"))
    site.kill(name)
    at = time.time()
    return Kill(job_id, name, at, service.events(site.services, job_id)[-1].id or 0)


def _first_step(site: Site, kill: Kill) -> JobEvent | None:
    """The first step of the job that was reported after the kill."""
    with site.services.database.reading() as session:
        query = select(JobEvent).where(JobEvent.job_id == kill.job_id, JobEvent.kind == "progress")
        return session.exec(query.where(col(JobEvent.id) > kill.last_event).order_by(col(JobEvent.id))).first()


def _claims(site: Site, jobs: list[str]) -> tuple[int, int]:
    """The number of claims of stages and pictures of these jobs, from the tokens of their leases; and of those to do.

    To do are each job's dataset and training, and the pictures that had not been prepared for another job.
    """
    with site.services.database.reading() as session:
        stages = session.exec(select(Job.lease_token).where(col(Job.id).in_(jobs))).all()
        pictures = session.exec(select(JobPicture.lease_token).where(col(JobPicture.job_id).in_(jobs))).all()
    return sum(stages) + sum(pictures), 2 * len(jobs) + sum(1 for token in pictures if token)


if __name__ == "__main__":
    sys.exit(main())
