"""`make bench-pipeline`: the cost of the pipeline without training, compared with empty Celery chains.

200 jobs of five pictures and one training step each, queued at once, from submit to ready; and, before and after
them in the same run, as many chains of five tasks that do nothing. The last line is one JSON object:
`jobs_per_s, empty_chains_per_s, overhead_ratio, p50_s, p99_s` (ratio: the time of a job in empty chains), and
`empty_canvases_per_s`: Celery's own rate for the ten messages of a job, including the chord.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.home import ROOT, settle

OWNER = "bench"


def main() -> int:
    """Run the benchmark in an isolated home folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--stages", action="store_true", help="also print the CPU time of each stage")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="imprint-bench-") as folder:
        settle(Path(folder), IMPRINT_IO_CONCURRENCY="2", IMPRINT_RELAUNCH_AFTER_S="600")
        result = _run(Path(folder), options.jobs, stages=options.stages)
    print(json.dumps(result))
    return 0


def _run(folder: Path, count: int, *, stages: bool) -> dict[str, Any]:
    from cli.stack import running
    from core.brokers import embedded_broker
    from core.settings import settings

    with running(settings(), flower=False):
        broker = embedded_broker.address(settings())
        os.environ["EMPTY_BROKER_URL"] = str(broker)
        with _empty_worker(folder):
            _empty("chain", count // 10)  # warm
            _jobs(folder, max(count // 20, 2), "warm")
            before = _empty("chain", count)
            canvases = _empty("canvas", count)
            waits, seconds = _jobs(folder, count, "measured")
            after = _empty("chain", count)
    if stages:
        _stages(20)
    empty = 2 * count / (before + after)
    cuts = quantiles(waits, n=100)
    return {
        "jobs_per_s": round(count / seconds, 2),
        "empty_chains_per_s": round(empty, 2),
        "overhead_ratio": round(empty * seconds / count, 2),
        "p50_s": round(cuts[49], 3),
        "p99_s": round(cuts[98], 3),
        "empty_canvases_per_s": round(count / canvases, 2),
    }


@contextmanager
def _empty_worker(folder: Path) -> Iterator[None]:
    log = folder / "empty.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "benchmarks.empty", "worker", "-c", "2", "-Q", "empty",
             "--without-gossip", "--without-mingle", "--loglevel", "INFO", "-n", "empty@%h"],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        while b" ready." not in log.read_bytes():
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def _empty(shape: str, count: int) -> float:
    """Seconds for `count` empty chains, or canvases of a job's shape, queued at once."""
    from benchmarks import empty

    send = {"chain": empty.send_chain, "canvas": empty.send_canvas}[shape]
    counter = f"bench:{time.monotonic_ns()}"
    with empty.app.connection_or_acquire() as connection:
        client = connection.default_channel.client
        begun = time.monotonic()
        for number in range(count):
            send(number, counter)
        while int(client.get(counter) or 0) < count:
            time.sleep(0.01)
        return time.monotonic() - begun


def _jobs(folder: Path, count: int, name: str) -> tuple[list[float], float]:
    """The seconds of each job from submission to ready, and of all jobs together."""
    import tasks.relay  # noqa: F401 - sends what is submitted here
    from jobs import service
    from jobs.owners import accounts
    from jobs.services import services

    accounts.grant(services(), OWNER, 100 * count)
    orders = [_stored(name, job) for job in range(count)]
    begun = time.monotonic()
    accepted = [service.submit(services(), _request(name, images)).job_id for images in orders]
    while (ended := _ended(accepted)).get("ready", 0) < count:
        if "failed" in ended:
            raise SystemExit(f"{ended['failed']} jobs failed; see imprint list")
        time.sleep(0.1)
    seconds = time.monotonic() - begun
    views = [service.get(services(), job_id) for job_id in accepted]
    waits = [(view.finished_at - view.created_at).total_seconds() for view in views if view.finished_at]
    return waits, seconds


def _stored(name: str, job: int) -> list[str]:
    """Upload five unique pictures; returns their ids."""
    from jobs.services import services
    from jobs.stages import intake

    owner = OWNER if name != "stages" else name
    return [intake.store_picture(services(), owner, name, picture(name, job, number)) for number in range(5)]


def _request(name: str, images: list[str]) -> dict[str, Any]:
    owner = OWNER if name != "stages" else name
    recipe = {"base_model": "sd15", "trigger_word": "imp", "resolution": 64, "max_steps": 1, "seed": 1}
    return {"owner_id": owner, "subject_id": name, "images": images, **recipe}


def _ended(job_ids: list[str]) -> dict[str, int]:
    """The number of jobs by status."""
    import sqlalchemy as sa
    from sqlmodel import col

    from jobs.services import services
    from storage.tables.jobs import Job

    with services().database.reading() as session:
        query = sa.select(col(Job.status), sa.func.count()).where(sa.column("id").in_(job_ids)).group_by(Job.status)
        return {str(row[0]): int(row[1]) for row in session.execute(query)}


def picture(name: str, job: int, number: int) -> bytes:
    """A small picture that differs from all others."""
    import io
    import random

    from PIL import Image, ImageDraw

    chance = random.Random(f"{name} {job} {number}")
    picture = Image.new("RGB", (96, 96), tuple(chance.randrange(256) for _ in range(3)))
    pen = ImageDraw.Draw(picture)
    for _ in range(8):
        x, y = chance.randrange(80), chance.randrange(80)
        pen.rectangle((x, y, x + 20, y + 20), fill=tuple(chance.randrange(256) for _ in range(3)))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def _stages(count: int) -> None:
    """CPU milliseconds of each stage per job, with all stages run in this process."""
    from jobs import service
    from jobs.owners import accounts
    from jobs.services import services
    from jobs.stages import preprocessing, stage_runner, steps
    from training.backends import local

    here = services()
    accounts.grant(here, "stages", 1000 * count)
    orders = [_stored("stages", job) for job in range(count)]
    jobs: list[str] = []
    parts: dict[str, Callable[[int], None]] = {
        "submit": lambda job: jobs.append(service.submit(here, _request("stages", orders[job])).job_id),
        "preprocess of five": lambda job: preprocessing.preprocess(here, jobs[job], *range(5)),
        "dataset": lambda job: steps.dataset(here, jobs[job]),
        f"train ({local.__name__})": lambda job: steps.train(here, jobs[job]),
        "upload": lambda job: steps.upload(here, jobs[job]),
        "settle": lambda job: steps.settle(here, jobs[job]),
        "clean up": lambda job: stage_runner.clean_up(here, jobs[job]),
    }
    for name, part in parts.items():
        first = 0
        if name.startswith("train"):
            part(0)  # loads the base model
            first = 1
        begun = time.process_time()
        for job in range(first, count):
            part(job)
        print(f"{1e3 * (time.process_time() - begun) / (count - first):8.1f} ms CPU  {name}")


if __name__ == "__main__":
    sys.exit(main())
