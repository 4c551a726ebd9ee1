"""A spot machine is taken away: its worker learns it from the cloud, and another one continues at the same step."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from core.settings import Settings
from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import control, intake, preprocessing, steps
from jobs.stages.stage_runner import NothingToDo
from storage.tables.jobs import Job
from tasks.workers import spot_notice
from tasks.workers.spot_notice import SpotNotice
from tests.servers.metadata import ACTION, metadata_server
from tests.site import site, until
from tests.unit.drawings import drawing, encoded
from training.backends import local, resident
from training.backends.encodings import Encodings
from training.engine.cohorts.cohort import Cohort

NOTICE_S = 30.0  # what Google gives; Amazon gives two minutes


@pytest.mark.parametrize(("cloud", "says"), [("aws", ACTION), ("gcp", "preempted")])
def test_the_notice_is_read_and_silence_is_none(cloud: str, says: str) -> None:
    with metadata_server() as server:
        notice = SpotNotice(cloud, server.environment)  # type: ignore[arg-type]
        assert notice.get() == ""
        server.token = "token-2"  # the first one is over
        server.is_noticed = True
        until(lambda: notice.get() == says, 60, "the notice")
    assert notice.get() == ""  # nothing answers


@pytest.mark.drawn
def test_a_training_on_a_machine_that_is_taken_away_ends_elsewhere_byte_for_byte(
    base_model: Path, tmp_path: Path
) -> None:
    """With a lease of a minute, a job that continues within seconds was handed over."""
    with metadata_server() as server, site(tmp_path, base_model, IMPRINT_LEASE_S="60", start=("io", "beat")) as running:
        running.grant("owner")
        images = running.pictures("owner")
        running.start("train", IMPRINT_SPOT_NOTICE="gcp", **server.environment)
        undisturbed = running.wait(running.send(images=images, max_steps=100)["job_id"])
        job_id = running.send(images=images, max_steps=100)["job_id"]
        running.wait(job_id, lambda view: view["step"] > 0)
        server.is_noticed, noticed_at = True, time.monotonic()
        # The worker asks every two seconds. A fast machine would be ready by then, so it stands still for that time.
        running.processes["train"].signal(signal.SIGSTOP)
        until(lambda: time.monotonic() > noticed_at + 2.5, 60, "the next question is due")
        running.processes["train"].signal(signal.SIGCONT)
        until(lambda: any(running.services.store.list(f"checkpoints/{job_id}/")), NOTICE_S, "a checkpoint")
        until(lambda: not running.processes["train"].alive, NOTICE_S, "the end of the worker")
        assert time.monotonic() - noticed_at < NOTICE_S
        assert "the cloud takes this machine away: preempted" in running.log("train").read_text()
        assert running.view(job_id)["step"] < 100
        running.start("train-2")
        view = running.wait(job_id)
        assert view["status"] == "ready", view["failure"]
        assert view["lora"]["sha256"] == undisturbed["lora"]["sha256"]
        assert "resumes at step" in running.log("train-2").read_text()
        assert sweeps.run_audit(running.services) == []


class Stuck:
    """Makes one call take as long as the test wants: the one after `calls` others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, calls: int = 0) -> None:
        self.reached, self.ends = threading.Event(), threading.Event()
        real, left = getattr(where, name), [calls]

        def slow(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                self.reached.set()
                assert self.ends.wait(120)
            return real(*args, **options)

        monkeypatch.setattr(where, name, slow)


@pytest.mark.parametrize(
    ("where", "name", "calls", "resumed"),
    [(local, "fingerprint", 0, 0), (Encodings, "conditions", 0, 0), (Cohort, "step", 6, 5)],
    ids=["reads a large base model", "encodes", "is in a long step"],
)
def test_what_cannot_be_interrupted_is_handed_over_in_time(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    where: Any, name: str, calls: int, resumed: int,
) -> None:  # fmt: skip
    """With a lease of an hour, another worker can only continue with a job that was given back."""
    caplog.set_level("INFO")
    monkeypatch.setattr(resident, "_resident", None)
    monkeypatch.setattr(control, "leaving", threading.Event())
    monkeypatch.setattr(spot_notice, "_PATIENCE_S", {"gcp": 0.2})
    services, job_id = ready_to_train(base_model, tmp_path)
    stuck = Stuck(monkeypatch, where, name, calls)
    outcome: list[BaseException] = []

    def train() -> None:
        try:
            steps.train(services, job_id)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            outcome.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    assert stuck.reached.wait(60)
    until(lambda: row(services, job_id).checkpoint_step == resumed, 60, "the last checkpoint is stored")
    with metadata_server() as server:
        server.is_noticed = True
        SpotNotice("gcp", server.environment).watch(
            lambda _: control.leaving.set(), services.lease_keeper.hand_over_all
        )
        until(lambda: row(services, job_id).lease_until is None, NOTICE_S, "the job is handed over")
    assert thread.is_alive(), "the machine is still at it"
    control.leaving.clear()  # the other worker is not asked to stop, and has a base model of its own
    monkeypatch.setattr(resident, "_resident", None)
    steps.train(services, job_id)
    assert (row(services, job_id).stage, row(services, job_id).attempt) == ("upload", 0)
    stuck.ends.set()
    thread.join(60)
    assert [type(error) for error in outcome] == [NothingToDo], "what it did since then counts for nothing"
    for step in (steps.upload, steps.settle):
        step(services, job_id)
    view = service.get(services, job_id)
    assert (view.status, view.credits.charged, view.step) == ("ready", 1, 8)
    reasons = [event.data["reason"] for event in service.events(services, job_id) if event.kind == "retry"]
    assert reasons == ["the cloud takes this machine away: preempted"]
    assert ("resumes at step 5 of 8" in caplog.text) is (resumed == 5)
    services.decoder.close()
    services.database.close()


def ready_to_train(base_model: Path, home: Path) -> tuple[Services, str]:
    """A job of eight steps, and a checkpoint after five, at the stage `train`."""
    services = Services(
        Settings(_env_file=None, home=home, base_models={"sd15": str(base_model)}, device="cpu", lease_s=3600)
    )
    accounts.grant(services, "ada", 100)
    images = [intake.store_picture(services, "ada", "dog", encoded(drawing(number, 96))) for number in range(5)]
    asked = {
        "owner_id": "ada", "subject_id": "dog", "images": images, "base_model": "sd15", "trigger_word": "sks",
        "resolution": 64, "max_steps": 8, "checkpoint_every": 1, "seed": 1,
    }  # fmt: skip
    job_id: str = service.submit(services, asked).job_id
    for position in range(5):  # a message of several would give others a turn after five seconds
        preprocessing.preprocess(services, job_id, position)
    steps.dataset(services, job_id)
    return services, job_id


def row(services: Services, job_id: str) -> Job:
    with services.database.reading() as session:
        return session.get_one(Job, job_id)
