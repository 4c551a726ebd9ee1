"""Trainings on rented machines, from the request to the file and the bill: real workers, a RunPod on this machine."""

import json
from pathlib import Path

import pytest

from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from tests.servers.remote import ENVIRONMENT, START, is_cleared, remote_runs
from tests.servers.runpod import runpod_server
from tests.site import Site, View, site, until
from training.lora import file as lora_file


def ready_and_charged_once(running: Site, job_id: str) -> View:
    view = running.wait(job_id, timeout_s=200)
    assert view["status"] == "ready", view["failure"]
    kinds = [entry.kind for entry in accounts.statement(running.services, view["owner_id"])]
    assert kinds.count("settle") == kinds.count("hold")
    assert accounts.balance(running.services, view["owner_id"]).held == 0
    assert sweeps.run_audit(running.services) == []
    return view


def test_ten_pictures_become_a_lora_on_a_rented_pod_that_is_deleted(base_model: Path, tmp_path: Path) -> None:
    pods = {"seconds_per_step": 0.05, "loading_s": 0.5}
    with (
        runpod_server(tmp_path / "runpod", pods=pods) as runpod,
        site(tmp_path / "site", base_model, start=START, **ENVIRONMENT, **runpod.environment) as running,
    ):
        running.grant("owner")
        job_id = running.send(images=running.pictures("owner", 10), max_steps=100)["job_id"]
        running.wait(job_id, lambda view: view["step"] > 0, timeout_s=120)
        [pod] = runpod.ledger()
        assert running.view(job_id)["trained_on"] | {"status": None} == {
            "backend": "ai-toolkit", "server": pod["name"], "status": None,
        }  # fmt: skip
        view = ready_and_charged_once(running, job_id)
        assert (view["step"], view["total_steps"], view["train_seconds"] > 3) == (100, 100, True)

        path = tmp_path / "lora.safetensors"
        service.download(running.services, job_id, path)
        report = lora_file.check_lora_file(path, family="sd15", rank=4)
        assert report.sha256 == view["lora"]["sha256"]
        assert (report.alpha, report.metadata["imprint_trigger_word"]) == (32.0, "imp")

        kinds = [event.kind for event in service.events(running.services, job_id)]
        assert kinds.count("progress") >= 2
        previews = list(running.services.store.list(f"previews/{job_id}/"))
        assert kinds.count("preview") == len(previews) >= 3
        assert running.services.store.get(previews[0])[:3] == b"\xff\xd8\xff"

        until(lambda: runpod.left() == [], 60, "the pod is deleted")
        assert len(runpod.ledger()) == 1
        [run] = remote_runs(running, job_id)
        assert run["cost_dollars"] > 0
        assert is_cleared(running, [job_id])
        status = json.loads(running.imprint("status", job_id, "--json").stdout)
        assert status["remote_runs"] == [run]


@pytest.mark.drawn
def test_a_pod_that_vanishes_costs_an_attempt_not_the_job(base_model: Path, tmp_path: Path) -> None:
    pods = {"seconds_per_step": 0.1}
    with (
        runpod_server(tmp_path / "runpod", pods=pods) as runpod,
        site(tmp_path / "site", base_model, start=START, **ENVIRONMENT, **runpod.environment) as running,
    ):
        running.grant("owner")
        job_id = running.send(max_steps=150)["job_id"]
        running.wait(job_id, lambda view: view["step"] > 0, timeout_s=120)
        runpod.change(runpod.ledger()[0]["id"], "vanished")
        ready_and_charged_once(running, job_id)
        assert [(run["attempt"], run["reason"] is None) for run in remote_runs(running, job_id)] == [
            (1, False), (2, True),
        ]  # fmt: skip
        until(lambda: runpod.left() == [], 60, "the second pod is deleted")


def test_a_cancelled_training_stops_on_its_server_at_once(base_model: Path, tmp_path: Path) -> None:
    pods = {"seconds_per_step": 5.0}
    with (
        runpod_server(tmp_path / "runpod", pods=pods) as runpod,
        site(tmp_path / "site", base_model, start=START, **ENVIRONMENT, **runpod.environment) as running,
    ):
        running.grant("owner")
        job_id = running.send(max_steps=1000)["job_id"]
        running.wait(job_id, lambda view: (view["trained_on"]["status"] or "").startswith("Training"), timeout_s=120)
        assert service.cancel(running.services, job_id).status == "cancelled"
        until(lambda: is_cleared(running, [job_id]), 60, "cleared from the server")
        until(lambda: runpod.left() == [], 60, "the pod is deleted")
        until(lambda: running.left_behind(job_id) == [], 60, "nothing is left here")
        assert list(running.services.store.list(f"previews/{job_id}/")) == []
        assert accounts.balance(running.services, "owner").held == 0
