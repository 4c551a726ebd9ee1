"""`make bench-remote`: the cost of polling 500 remote trainings at once.

A fake ai-toolkit server on this machine, in its own process, trains them all. A poll asks it for its jobs, then for the
loss and samples of each, and records their progress. There are three polls, each after every job has made progress. The
last line is one JSON object with the slowest: `jobs, sweep_s, requests, cpu_s, period_s` (cpu_s: of the poll, not of
the server; both share the machine's cores).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.home import ROOT, clear_settings

if TYPE_CHECKING:
    from jobs.services import Services

POLLS = 3
PERIOD_S = 30.0


def main() -> int:
    """Run the benchmark in an isolated home folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    options = parser.parse_args()
    clear_settings()
    with tempfile.TemporaryDirectory(prefix="imprint-bench-") as name:
        folder = Path(name)
        with _server(folder, options.jobs) as url:
            result = _run(folder, url, options.jobs)
    print(json.dumps(result))
    return 0 if result["sweep_s"] < PERIOD_S else 1


@contextmanager
def _server(folder: Path, slots: int) -> Iterator[str]:
    """Run a fake ai-toolkit server that trains all its jobs at the same time; yields its address."""
    server = subprocess.Popen(
        [sys.executable, "-m", "fakes.ai_toolkit", "--port", "0", "--folder", str(folder / "server"),
         "--slots", str(slots), "--tick", "2", "--seconds-per-step", "0.5", "--journal", str(folder / "journal")],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None  # noqa: S101 - it is a pipe
        yield server.stdout.readline().split()[-1]
    finally:
        server.terminate()
        server.wait()


def _run(folder: Path, url: str, count: int) -> dict[str, Any]:
    from core.settings import Settings
    from jobs.services import Services

    services = Services(Settings(_env_file=None, home=folder / "home", ai_toolkit_url=url, remote_poll_s=PERIOD_S))
    print(f"bringing {count} trainings to the server …", flush=True)
    _bring(services, _picture(folder), count)
    polls = []
    for _ in range(POLLS):
        _wait_until_all_have_moved(services)
        polls.append(_poll(services, folder, count))
        print(polls[-1], flush=True)
    return max(polls, key=lambda poll: float(poll["sweep_s"]))


def _picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / "picture.png"
    Image.effect_noise((64, 64), 60).convert("RGB").save(path)
    return path


def _bring(services: "Services", picture: Path, count: int) -> None:
    """Write the rows of jobs in the stage `train`, submitted, and create the server's jobs, all on one dataset."""
    from core.clock import utcnow
    from jobs.remote import pods
    from storage.tables.jobs import Job, Stage, Status
    from storage.tables.remote import RemoteRun, RunState
    from training.backends.ai_toolkit.config import find_base_model, job_config
    from training.backends.ai_toolkit.work import remote_name
    from training.spec import TrainSpec

    given = {"base_model": "sd15", "trigger_word": "imp", "resolution": 64, "max_steps": 100_000, "seed": 1}
    spec = TrainSpec.model_validate(given | {"backend": "ai-toolkit"})
    server = pods.server_of(services, None)
    server.datasets()
    dataset = server.create_dataset("imprint_bench")
    server.upload(dataset, [("0001.png", picture.read_bytes()), ("0001.txt", b"imp")])
    folders, base = server.folders(), find_base_model(spec, {})
    for number in range(count):
        job_id = f"job_{number:04d}"
        name = remote_name(job_id, 1)
        config = job_config(spec, name, folders, pictures=1, base_model=base, dataset=dataset)
        made = server.create_job(name, config)
        if made is None:
            raise SystemExit(f"the server has a job {name} already")
        server.start(made.id)
        with services.database.writing() as session:
            session.add(
                Job(
                    id=job_id, owner_id="bench", subject_id="bench", request_sha256="",
                    spec=spec.model_dump(mode="json"), status=Status.TRAINING, stage=Stage.TRAIN, total_steps=100_000,
                )
            )  # fmt: skip
            session.flush()
            session.add(
                RemoteRun(
                    job_id=job_id, attempt=1, name=name, remote_id=made.id, state=RunState.SUBMITTED,
                    submitted_at=utcnow(),
                )
            )  # fmt: skip
    server.start_queue()


def _wait_until_all_have_moved(services: "Services") -> None:
    """Wait until each of the server's jobs has made progress since the last poll, and make all runs due for a poll."""
    import sqlalchemy as sa
    from sqlmodel import select

    from jobs.remote import pods
    from storage.tables.remote import RemoteRun

    with services.database.writing() as session:
        session.execute(sa.update(RemoteRun).values(looked_at=None))
        known = dict(session.exec(select(RemoteRun.name, RemoteRun.step)).all())
    server = pods.server_of(services, None)
    while not all(job.step > known[name] for name, job in server.jobs().items()):
        time.sleep(1)


def _poll(services: "Services", folder: Path, count: int) -> dict[str, Any]:
    from jobs.remote import polls

    journal = folder / "journal"
    asked = len(journal.read_text().splitlines())
    begun, cpu = time.monotonic(), time.process_time()
    polled = polls.poll(services)
    seconds, cpu_s = time.monotonic() - begun, time.process_time() - cpu
    if (polled.polled, polled.given_up) != (count, 0):
        raise SystemExit(f"not every job was seen: {polled}")
    return {
        "jobs": count,
        "sweep_s": round(seconds, 2),
        "requests": len(journal.read_text().splitlines()) - asked,
        "cpu_s": round(cpu_s, 2),
        "period_s": PERIOD_S,
    }


if __name__ == "__main__":
    sys.exit(main())
