"""Other brokers, databases and stores under the same chain: a training that succeeds, one that fails, restarts."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celery import Celery

from jobs import accounts, intake, service, sweeps
from tests.servers.gated_s3 import gated_s3
from tests.servers.postgres import new_database, postgres_server
from tests.servers.rabbitmq import rabbitmq_server
from tests.site import Site, site, until


def one_ready_and_one_failed(site: Site) -> None:
    """A training by name from an application, all workers restarted, then one with too few pictures."""
    site.grant("owner")
    view = site.wait(site.send()["job_id"])
    assert view["status"] == "ready", view["failure"]
    assert view["step"] == 2
    for name in ("io", "train"):
        assert site.stop(name) == 0, site.log(name).read_text()[-3000:]
        site.start(name)
    poison = [intake.store_picture(site.house, "owner", "m", b"poison %d" % number) for number in range(2)]
    failed = site.wait(site.send(images=[*site.pictures("owner", 4), *poison])["job_id"])
    assert (failed["status"], failed["failure"]["code"]) == ("failed", "too_few_images")
    assert [entry["state"] for entry in failed["failure"]["details"]["pictures"]] == ["good"] * 4 + ["bad"] * 2
    kinds = [entry["kind"] for entry in accounts.statement(site.house, "owner")]
    assert kinds == ["release", "hold", "settle", "hold", "grant"]
    assert accounts.balance(site.house, "owner").held == 0
    assert sweeps.check_books(site.house) == []
    # Nobody had to be helped: every message came, and the body of the chord ran by itself.
    for job_id in (view["job_id"], failed["job_id"]):
        assert [event for event in service.events(site.house, job_id) if event.kind == "retry"] == []


@contextmanager
def ended(site: Site) -> Iterator[Site]:
    try:
        site.house.database.migrate()
        for name in ("io", "train", "beat"):
            site.start(name)
        yield site
    finally:
        site.end()


def test_rabbitmq_with_results_in_the_database(base_model: Path, tmp_path: Path) -> None:
    """No Redis anywhere. Without IMPRINT_RESULT_URL the chord counts its pictures in the database."""
    with rabbitmq_server(tmp_path / "rabbitmq") as rabbit:
        made = Site(tmp_path / "site", base_model, rabbit.url)
        made.application = Celery("application", broker=rabbit.url, backend=f"db+{made.settings.database}")
        with ended(made) as running:
            one_ready_and_one_failed(running)
            # The broker crashes while a job trains; its queues and the workers outlive it.
            job_id = running.send(max_steps=200)["job_id"]
            running.wait(job_id, lambda view: view["step"] > 0)
            rabbit.kill()
            rabbit.restart()
            view = running.wait(job_id)
            assert view["status"] == "ready", view["failure"]
            assert all(running.processes[name].alive for name in ("io", "train"))
            assert sweeps.check_books(running.house) == []


def test_redis_postgresql_and_s3_together(base_model: Path, tmp_path: Path) -> None:
    with (
        gated_s3() as s3,
        postgres_server() as server,
        site(tmp_path, base_model, IMPRINT_DATABASE_URL=new_database(server), **s3.environment) as running,
    ):
        one_ready_and_one_failed(running)
        assert not (running.settings.home / "imprint.db").exists()
        assert not (running.settings.home / "store").exists()
        keys = [entry["Key"] for entry in s3.client().list_objects_v2(Bucket=s3.bucket)["Contents"]]
        assert {key.split("/")[1] for key in keys} >= {"originals", "prepared", "datasets", "models"}
        until(lambda: not any(running.house.store.list("checkpoints/")), 20, "cleaned up")
        assert json.loads(running.imprint("audit", "--json").stdout) == {"ok": True, "findings": []}
