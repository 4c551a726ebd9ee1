"""Polls of several servers at once, in this process: one that hangs keeps nobody from being seen."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from core.clock import utcnow
from core.settings import Settings
from jobs.remote import pods, polls
from jobs.services import Services
from storage.tables.jobs import Job, Stage, Status
from storage.tables.remote import PodState, RemoteRun, RentedPod, RunState
from tests.servers.fake_pod import FakePod, fake_pod
from training.backends.ai_toolkit.config import job_config
from training.spec import TrainSpec

SPEC = TrainSpec.model_validate(
    {"base_model": "sd15", "trigger_word": "imp", "resolution": 64, "max_steps": 5000, "seed": 1}
    | {"backend": "ai-toolkit"}
)


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    made = Services(
        Settings(_env_file=None, home=tmp_path, runpod_api_key="key", remote_lost_polls=3, remote_poll_s=0.5)
    )
    yield made
    made.database.close()


def bring(services: Services, pod: FakePod, name: str, picture: bytes) -> None:
    """A job that one pod trains."""
    run_name = f"imprint_job_{name}_1"
    with services.database.writing() as session:
        session.add(RentedPod(id=name, name=name, provider_id=name, state=PodState.READY, url=pod.url))
        session.add(
            Job(id=f"job_{name}", owner_id="o", subject_id="s", request_sha256="", spec=SPEC.model_dump(mode="json"),
                status=Status.TRAINING, stage=Stage.TRAIN, total_steps=5000)
        )  # fmt: skip
        session.flush()
        session.add(
            RemoteRun(job_id=f"job_{name}", attempt=1, name=run_name, pod_id=name, remote_id="x",
                      state=RunState.SUBMITTED, submitted_at=utcnow())
        )  # fmt: skip
    server = pods.server_of(services, name)
    server.datasets()
    server.upload(server.create_dataset(run_name), [("0001.png", picture), ("0001.txt", b"imp")])
    job = server.create_job(run_name, job_config(SPEC, run_name, server.folders(), pictures=1, base_model="a/b"))
    assert job is not None
    server.start(job.id)
    server.start_queue()


def run_of(services: Services, name: str) -> RemoteRun:
    with services.database.reading() as session:
        return session.get_one(RemoteRun, (f"job_{name}", 1))


def later(services: Services) -> None:
    """Time passes: so soon after a poll nobody needs to look again."""
    with services.database.writing() as session:
        session.execute(sa.update(RemoteRun).values(looked_at=None))


def test_a_server_that_hangs_keeps_nobody_from_being_seen(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = (Path(__file__).resolve().parents[2] / "demo" / "pictures" / "01.png").read_bytes()
    monkeypatch.setattr(polls, "_LEAST_TIME_S", 6.0)
    token = pods.token_of(services, RentedPod(id="good", name="good"))
    other = pods.token_of(services, RentedPod(id="bad", name="bad"))
    with fake_pod(tmp_path / "1", token=token) as good, fake_pod(tmp_path / "2", token=other) as bad:
        bring(services, good, "good", picture)
        bring(services, bad, "bad", picture)
        bad.pause()
        for missed in (1, 2):
            later(services)
            begun = time.monotonic()
            seen = polls.poll(services)
            assert (seen.polled, seen.given_up) == (2, 0)
            assert time.monotonic() - begun < 60
            assert (run_of(services, "bad").missed, run_of(services, "good").missed) == (missed, 0)
            assert run_of(services, "good").status in ("queued", "running")
        bad.resume()
        later(services)
        assert polls.poll(services).polled == 2
        assert (run_of(services, "bad").missed, run_of(services, "bad").status) == (0, "running")
