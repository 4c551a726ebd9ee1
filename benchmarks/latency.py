"""`make bench-latency`: what a job costs beside its training, on the pocket base model with ten pictures.

The whole stack runs with a private Redis and SQLite. The last line is one JSON object:

- `fresh_first_step_s`: from submit to the first step, once the training worker has just reported that it is there.
- `first_step_p50_s`, `webhook_p50_s`: jobs one after the other: submit to the first step, last step to the webhook.
- `jobs_per_minute`: jobs of one step with known pictures, queued at once.
- `cpu_known_ms`, `cpu_new_ms`: CPU time per job of all processes except the trainer, beyond `idle_cpu_ms_per_s`: with
  known pictures, and with ten new ones. It counts where other work runs on the machine; other figures suffer from that.
- `burst_trained_s`, `burst_ready_s`: 100 jobs of five new pictures each, sent as fast as possible: when the first has
  been trained, and when the first is ready. `burst_tail_p50_s`, `burst_tail_max_s`: of all jobs, from trained to ready.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.home import clear_settings
from benchmarks.pipeline import picture
from benchmarks.soak import process_tree
from tests.servers.receiver import Receiver, receiver

OWNER = "bench"
PICTURES = 10
_IDLE_S = 10.0


@dataclass(frozen=True)
class Times:
    """What happened to one job, in seconds since the epoch."""

    submitted: float
    first_step: float
    trained: float
    ready: float


def main() -> int:
    """Run the benchmark in an isolated home folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=30, help="jobs of each part")
    parser.add_argument("--burst", type=int, default=100, help="jobs of the burst")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="imprint-bench-") as folder, receiver() as application:
        _set_up(Path(folder), application)
        result = _run(application, options.jobs, options.burst)
    print(json.dumps(result))
    return 0


def _set_up(folder: Path, application: Receiver) -> None:
    from demo.pocket import MODEL

    clear_settings()
    os.environ.update(
        IMPRINT_HOME=str(folder / "home"),
        IMPRINT_BASE_MODELS=json.dumps({"sd15": str(MODEL)}),
        IMPRINT_FETCH_ALLOW_HOSTS=json.dumps([application.address]),
        IMPRINT_LOG_LEVEL="WARNING",
        IMPRINT_IO_CONCURRENCY="2",
        IMPRINT_RELAUNCH_AFTER_S="600",
        OMP_NUM_THREADS="1",
        OMP_WAIT_POLICY="PASSIVE",
    )


def _run(application: Receiver, count: int, burst: int) -> dict[str, Any]:
    from cli.stack import running
    from core.settings import settings
    from jobs.admission import workers
    from jobs.owners import accounts
    from jobs.services import services

    result: dict[str, Any] = {"jobs": count}
    with running(settings(), flower=False) as stack:
        import tasks.relay  # noqa: F401 - sends what is submitted here

        accounts.grant(services(), OWNER, 10**7)
        known = _store("known", 0, PICTURES)
        while not any(worker.alive for worker in workers.list_workers(services())):
            time.sleep(0.05)
        fresh = _times(_submit("fresh", known))
        result["fresh_first_step_s"] = round(fresh.first_step - fresh.submitted, 3)
        result |= _one_by_one(application, known, count)
        result |= _at_once(stack, count, known)
        result |= _burst(burst)
    return result


def _one_by_one(application: Receiver, known: Sequence[str], count: int) -> dict[str, float]:
    """Latencies of single jobs, each sent when the one before it has ended."""
    starts, ends = [], []
    with _arrival_times(application) as arrivals:
        for _ in range(count):
            job_id = _submit("single", known, webhook_url=application.url)
            done = _times(job_id)
            while job_id not in arrivals:
                time.sleep(0.01)
            starts.append(done.first_step - done.submitted)
            ends.append(arrivals[job_id] - done.trained)
    return {"first_step_p50_s": round(median(starts), 3), "webhook_p50_s": round(median(ends), 3)}


@contextmanager
def _arrival_times(application: Receiver) -> Iterator[dict[str, float]]:
    """When the webhook of the end of each job arrived."""
    arrived: dict[str, float] = {}

    class Log(list[Any]):
        def append(self, one: Any) -> None:
            super().append(one)
            if one.content["training_status"] == "completed":
                arrived.setdefault(one.content["data"]["training_id"], time.time())

    application.got = Log()
    yield arrived


def _at_once(stack: Any, count: int, known: Sequence[str]) -> dict[str, float]:
    """Rate, and CPU time per job, with known and with new pictures."""
    sets: dict[str, list[Sequence[str]]] = {
        "known": [known] * count,
        "new": [_store("new", number, PICTURES) for number in range(count)],
    }
    time.sleep(3)  # what the jobs before left: clean-up, sweeps
    idle = _cpu_s(stack)
    time.sleep(_IDLE_S)
    idle = (_cpu_s(stack) - idle) / _IDLE_S
    result = {"idle_cpu_ms_per_s": round(1e3 * idle, 1)}
    for name, images in sets.items():
        time.sleep(3)
        begun, cpu = time.monotonic(), _cpu_s(stack)
        _wait_until_ready([_submit(name, one) for one in images])
        seconds = time.monotonic() - begun
        if name == "known":
            result["jobs_per_minute"] = round(60 * count / seconds, 1)
        result[f"cpu_{name}_ms"] = round(1e3 * (_cpu_s(stack) - cpu - idle * seconds) / count, 1)
    return result


def _burst(count: int) -> dict[str, float]:
    images = [_store("burst", number, 5) for number in range(count)]
    begun = time.time()
    jobs = [_submit("burst", one) for one in images]
    sent = time.time() - begun
    _wait_until_ready(jobs)
    found = [_times(job_id) for job_id in jobs]
    tails = [one.ready - one.trained for one in found]
    return {
        "burst": count,
        "burst_sent_s": round(sent, 2),
        "burst_trained_s": round(min(one.trained for one in found) - begun, 2),
        "burst_ready_s": round(min(one.ready for one in found) - begun, 2),
        "burst_tail_p50_s": round(median(tails), 3),
        "burst_tail_max_s": round(max(tails), 3),
        "burst_seconds": round(max(one.ready for one in found) - begun, 1),
    }


# ---- jobs ---------------------------------------------------------------------------------------------------------


def _store(name: str, job: int, count: int) -> list[str]:
    """Store pictures that differ from all others; returns their ids."""
    from jobs.services import services
    from jobs.stages import intake

    return [intake.store_picture(services(), OWNER, name, picture(name, job, number)) for number in range(count)]


def _submit(name: str, images: Sequence[str], **more: Any) -> str:
    from jobs import service
    from jobs.services import services

    asked = {
        "owner_id": OWNER, "subject_id": name, "images": list(images), "base_model": "sd15", "trigger_word": "imp",
        "resolution": 64, "max_steps": 2, "seed": 1, **more,
    }  # fmt: skip
    return service.submit(services(), asked).job_id


def _wait_until_ready(jobs: Sequence[str]) -> None:
    import sqlalchemy as sa
    from sqlmodel import col

    from jobs.services import services
    from storage.tables.jobs import Job

    query = sa.select(col(Job.status), sa.func.count()).where(col(Job.id).in_(jobs)).group_by(col(Job.status))
    while True:
        with services().database.reading() as session:
            found = {str(status): int(number) for status, number in session.execute(query)}
        if found.get("ready", 0) == len(jobs):
            return
        if "failed" in found:
            raise SystemExit(f"{found['failed']} jobs failed; see imprint list")
        time.sleep(0.1)


def _times(job_id: str) -> Times:
    """The times of a job, when it is ready."""
    from jobs import service
    from jobs.services import services

    _wait_until_ready([job_id])
    view = service.get(services(), job_id)
    events = service.events(services(), job_id)
    steps = [event for event in events if event.kind == "progress"]
    ready = next(event for event in events if event.kind == "status" and event.data["status"] == "ready")
    return Times(
        view.created_at.timestamp(), steps[0].at.timestamp(), steps[-1].at.timestamp(), ready.at.timestamp()
    )  # fmt: skip


# ---- CPU time -----------------------------------------------------------------------------------------------------


def _cpu_s(stack: Any) -> float:
    """CPU seconds so far of this process and of the stack, except of the trainer. Ended children are counted."""
    trainer = process_tree(stack["train"].process.pid)
    return sum(_process_cpu_s(pid) for pid in process_tree(os.getpid()) if pid not in trainer)


def _process_cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended, and its parent counts it
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
