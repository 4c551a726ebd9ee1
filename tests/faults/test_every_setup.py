"""The same suite on every kind of broker, database and store: four set-ups in which each pair of kinds occurs.

`make test` draws one of the three that no other test of this folder uses; `make test-full` runs all four.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from jobs.stages import intake
from tests.samples import FULL, sample
from tests.servers.pictures import PictureServer, picture_server
from tests.site import Site, View, drawing, site, until

pytestmark = pytest.mark.drawn

STAGE_MESSAGES = (
    ("imprint.preprocess", 1, "io"),
    ("imprint.dataset", 0, "cpu"),
    ("imprint.train", 0, "train.sd15"),
    ("imprint.upload", 0, "io"),
    ("imprint.settle", 0, "io"),
    ("imprint.step_failed", 0, "io"),
)


def ready(running: Site, job_id: str) -> View:
    view = running.wait(job_id, timeout_s=240)
    assert view["status"] == "ready", view["failure"]
    until(lambda: running.left_behind(job_id) == [view["lora"]["key"]], 90, "nothing left but the file")
    return view


def undisturbed(running: Site, job_id: str) -> None:
    """Nobody had to be helped: every message came, and the body of the chord ran by itself."""
    assert [event for event in service.events(running.services, job_id) if event.kind == "retry"] == []


# ---- what happens, one after another on the same site ----------------------------------------------------------


def trains_and_fails_as_it_should(running: Site, _: PictureServer, __: list[str]) -> None:
    """One ready; all workers restarted in good order; one with too few good pictures."""
    first = ready(running, running.send()["job_id"])
    assert first["step"] == 2
    for name in ("io", "train"):
        assert running.stop(name) == 0, running.log(name).read_text()[-3000:]
        running.start(name)
    poison = [intake.store_picture(running.services, "owner", "m", b"poison %d" % number) for number in range(2)]
    failed = running.wait(running.send(images=[*running.pictures("owner", 4), *poison])["job_id"])
    assert (failed["status"], failed["failure"]["code"]) == ("failed", "too_few_images")
    assert [entry["state"] for entry in failed["failure"]["details"]["pictures"]] == ["good"] * 4 + ["bad"] * 2
    undisturbed(running, first["job_id"])
    undisturbed(running, failed["job_id"])


def survives_kills(running: Site, server: PictureServer, urls: list[str]) -> None:
    """kill -9 of io while it fetches the job's pictures, then of train while it trains."""
    job_id = running.send(images=urls, max_steps=80)["job_id"]
    until(lambda: server.asked.get("/3.png", 0) > 0, 60, "the held picture is asked for")
    running.kill("io")
    server.held.clear()
    server.release()
    running.start("io")
    running.wait(job_id, lambda view: view["step"] > 0)
    running.kill("train")
    running.start("train")
    ready(running, job_id)
    assert {server.asked[f"/{number}.png"] for number in range(3)} == {1}, "prepared before the kill, not fetched again"


def does_once_what_is_sent_twice(running: Site, _: PictureServer, __: list[str]) -> None:
    job_id = running.send(max_steps=60)["job_id"]
    for name, with_position, queue in STAGE_MESSAGES * 2:
        running.application.send_task(name, (job_id, 0) if with_position else (job_id,), queue=queue)
    ready(running, job_id)
    undisturbed(running, job_id)


def cancels(running: Site, _: PictureServer, __: list[str]) -> None:
    job_id = running.send(max_steps=100_000)["job_id"]
    running.wait(job_id, lambda view: view["step"] > 0)
    sent = running.application.send_task("imprint.cancel", (job_id,), queue="io")
    assert sent.get(timeout=60)["status"] == "cancelled"
    sent.forget()
    sent.backend = None
    until(lambda: running.left_behind(job_id) == [], 90, "nothing left of it")


def outlives_its_broker(running: Site, _: PictureServer, __: list[str]) -> None:
    """kill -9 of the broker while a job trains: what it keeps on disk and the workers outlive it."""
    assert running.broker is not None
    job_id = running.send(max_steps=100)["job_id"]
    running.wait(job_id, lambda view: view["step"] > 0)
    running.broker.kill()
    running.broker.restart()
    ready(running, job_id)
    assert all(process.alive for process in running.processes.values())


SUITE: tuple[Callable[[Site, PictureServer, list[str]], None], ...] = (
    trains_and_fails_as_it_should,
    survives_kills,
    does_once_what_is_sent_twice,
    cancels,
    outlives_its_broker,
)


USUAL = [("redis", "sqlite", "local")]
OTHERS = [("redis", "postgresql", "s3"), ("rabbitmq", "sqlite", "s3"), ("rabbitmq", "postgresql", "local")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("broker", "database", "store"), (USUAL if FULL else []) + sample(OTHERS, 1, "set-ups"))
def test_the_suite(base_model: Path, tmp_path: Path, broker: str, database: str, store: str) -> None:
    with picture_server() as server:
        urls = [server.put(f"/{n}.png", drawing(tmp_path / f"{n}.png", n).read_bytes()) for n in range(6)]
        server.held.add("/3.png")
        # On a busy machine, nobody is helped before help is due.
        patience = {"IMPRINT_LEASE_S": "4", "IMPRINT_RELAUNCH_AFTER_S": "120"}
        allowed = json.dumps([server.address])
        kinds = {"broker": broker, "database": database, "store": store}
        with site(tmp_path / "site", base_model, IMPRINT_FETCH_ALLOW_HOSTS=allowed, **patience, **kinds) as running:  # type: ignore[arg-type]
            running.grant("owner")
            for step in SUITE:
                step(running, server, urls)
            until(lambda: accounts.balance(running.services, "owner").held == 0, 60, "no hold is left")
            entries = [entry.kind for entry in accounts.statement(running.services, "owner")]
            ended = [view.status for view in service.jobs(running.services, owner_id="owner")]
            assert sorted(ended) == ["cancelled", "failed", "ready", "ready", "ready", "ready"]
            assert entries.count("hold") == 6
            charged = sum(view.credits.charged for view in service.jobs(running.services, owner_id="owner"))
            assert accounts.balance(running.services, "owner").spent == charged
            assert sweeps.run_audit(running.services) == []
            audit = json.loads(running.imprint("audit", "--json").stdout)
            assert (audit["ok"], audit["findings"]) == (True, [])
            assert (running.settings.home / "imprint.db").exists() == (database == "sqlite")
            assert (running.settings.home / "store").exists() == (store == "local")
