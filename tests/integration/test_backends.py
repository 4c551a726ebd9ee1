"""`imprint backends` and `imprint pods`, typed as operators do: local workers, a RunPod, a broker that is away."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session

from core.ids import new_id
from jobs.remote import pods
from storage.tables.jobs import Job
from storage.tables.remote import RemoteRun, RentedPod
from tests.samples import sample
from tests.servers.process import free_port
from tests.servers.rabbitmq import rabbitmq_server
from tests.servers.redis import redis_server
from tests.servers.runpod import runpod_server
from tests.site import Site
from training.families.registry import trained_here
from training.spec import TrainSpec


@pytest.mark.parametrize("server", sample([redis_server, rabbitmq_server], 1, "queues of local workers"))
def test_local_workers_and_their_queues(server: Any, base_model: Path, tmp_path: Path) -> None:
    with server(tmp_path / "broker") as broker:
        site = Site(tmp_path / "site", base_model, broker.url, IMPRINT_DEVICE="cpu")
        try:
            site.services.database.migrate()
            site.start("train")
            found = json.loads(site.imprint("backends", "--json").stdout)
            assert found["trouble"] == ""
            names = sorted(f"train.{name}" for name in trained_here())
            assert [(row["backend"], row["name"]) for row in found["backends"]] == [("local", name) for name in names]
            for row in found["backends"]:
                assert (row["health"], row["gpu"], row["queue"]) == ("1 worker", "CPU", 0)
            assert site.stop("train") == 0
            for _ in range(3):
                site.application.send_task("imprint.train", args=["job_nobody"], queue="train.sdxl", ignore_result=True)
            found = json.loads(site.imprint("backends", "--json").stdout)
            assert [(row["health"], row["queue"]) for row in found["backends"]] == [
                ("no worker answers", 3 if name == "train.sdxl" else 0) for name in names
            ]
        finally:
            site.end()


def test_pods_are_listed_and_closed_while_no_broker_answers(base_model: Path, tmp_path: Path) -> None:
    with runpod_server(tmp_path / "runpod", start_s=3600, sold_out=["NVIDIA L40S"]) as cloud:
        site = Site(tmp_path / "site", base_model, f"redis://127.0.0.1:{free_port()}/0", **cloud.environment)
        site.services.database.migrate()
        job_id = new_id("job")

        def assign(session: Session, pod: RentedPod | None) -> None:
            session.add(Job(id=job_id, owner_id="o", subject_id="s", request_sha256="", spec={}))
            session.flush()
            session.add(RemoteRun(job_id=job_id, attempt=1, name=f"imprint_{job_id}", pod_id=pod and pod.id))

        spec = TrainSpec(base_model="sd15", trigger_word="imp", seed=1)  # type: ignore[call-arg]
        pod = pods.place(site.services, spec, assign).pod
        assert pod is not None

        content = site.imprint("backends")
        assert "No broker answers" in content.stderr
        assert f"{pod.name}  starting" in content.stdout
        assert "NVIDIA RTX A6000 ($0.49)" in content.stdout
        assert "L40S" not in content.stdout

        [listed] = json.loads(site.imprint("pods", "--json").stdout)["pods"]
        assert (listed["name"], listed["state"], listed["jobs"]) == (pod.name, "starting", [job_id])
        refused = site.imprint("pods", "close", pod.name, check=False)
        assert (refused.returncode, cloud.left()) == (1, [pod.name])
        assert "--force" in refused.stderr
        done = json.loads(site.imprint("pods", "close", pod.name, "--force", "--json").stdout)
        assert done == {"name": pod.name, "state": "gone", "jobs": [job_id]}
        assert cloud.left() == []
        assert site.imprint("pods", "close", pod.name, check=False).returncode == 1
        assert "closed by an operator" in site.imprint("pods", "--all").stdout
        site.end()


@pytest.mark.drawn
@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="wants a machine without a GPU")
@pytest.mark.parametrize("server", sample([redis_server, rabbitmq_server], 1, "a device that does not work"))
def test_a_worker_whose_device_does_not_work_takes_no_job(server: Any, base_model: Path, tmp_path: Path) -> None:
    """It stays, says so, and leaves the job to a worker that can train. `make test` draws the broker."""
    with server(tmp_path / "broker") as broker:
        site = Site(tmp_path / "site", base_model, broker.url, IMPRINT_DEVICE="cuda")
        try:
            site.services.database.migrate()
            site.grant("owner")
            site.start("io")
            site.start("train")
            job_id = site.send()["job_id"]
            site.wait(job_id, lambda view: view["stage"] == "train")
            listed = json.loads(site.imprint("backends", "--json").stdout)["backends"]
            [first] = [one for one in listed if one["name"] == "train.sd15"]
            assert (first["health"][:24], first["queue"]) == ("0 workers; takes no job:", 1)
            assert "cuda" in first["health"]
            assert site.view(job_id)["status"] in ("pending", "training")
            site.start("train-2", IMPRINT_DEVICE="cpu")
            assert site.wait(job_id)["status"] == "ready"
            assert "takes no training" in site.log("train").read_text()
        finally:
            site.end()
