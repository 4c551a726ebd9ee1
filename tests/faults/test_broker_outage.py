"""Redis goes away in mid-training: the worker stays, the training goes on, the job ends ready."""

from pathlib import Path

from jobs import accounts
from tests.site import site, until


def test_redis_restarts_in_mid_training(base_model: Path, tmp_path: Path) -> None:
    """Celery 5.7.0's own consumer exits with code 1 here; ours must not."""
    with site(tmp_path, base_model) as running:
        assert running.redis is not None
        running.grant("owner")
        job_id = running.send(max_steps=300)["job_id"]
        before = running.wait(job_id, lambda view: view["step"] > 0)["step"]
        train = running.processes["train"]
        running.redis.kill()
        # The training does not wait for the broker.
        running.wait(job_id, lambda view: view["step"] > before + 50 or view["stage"] != "train", timeout_s=60)
        running.redis.start()
        view = running.wait(job_id)
        assert view["status"] == "ready", view["failure"]
        assert train.alive
        assert "Connection to broker lost" in running.log("train").read_text()
        assert [entry["kind"] for entry in accounts.statement(running.house, "owner")] == ["settle", "hold", "grant"]


def test_redis_loses_everything(base_model: Path, tmp_path: Path) -> None:
    """All queued messages are gone; the sweep sends the jobs again from the database."""
    with site(tmp_path, base_model, start=("io",), IMPRINT_RELAUNCH_AFTER_S="3") as running:
        assert running.redis is not None
        running.grant("owner")
        jobs = [running.send()["job_id"] for _ in range(3)]
        for job_id in jobs:
            running.wait(job_id, lambda view: view["stage"] == "train")
        running.redis.kill()
        running.redis.forget()
        running.redis.start()
        running.start("train")
        running.start("beat")
        for job_id in jobs:
            assert running.wait(job_id)["status"] == "ready"
        until(lambda: accounts.balance(running.house, "owner").held == 0, 10, "all settled")
