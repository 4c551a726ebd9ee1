"""`imprint doctor`, as an operator types it on a running site and on one where much is wrong."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from cli.operations import doctor
from core.settings import Settings
from jobs.services import Services
from storage.database import Database, known_revisions
from tests.integration.doctor import run_doctor
from tests.servers.postgres import new_database, postgres_server
from tests.servers.process import free_port
from tests.servers.redis import redis_server
from tests.site import Site


def by_name(findings: Any) -> dict[str, dict[str, str]]:
    return {found["name"]: found for found in findings}


def examined(**settings: Any) -> dict[str, doctor.CheckResult]:
    """What the doctor finds in this process, without its look at the device."""
    here = Services(Settings(_env_file=None, **settings))
    checks = [check for check in doctor.CHECKS if check is not doctor._device]
    return {found.name: found for found in doctor.examine(here, checks)}


def test_a_running_site_is_healthy(base_model: Path, tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis", password="secret") as broker:
        site = Site(tmp_path / "site", base_model, broker.url, IMPRINT_DEVICE="cpu", IMPRINT_FLOWER_PORT="1")
        try:
            site.services.database.migrate()
            site.start("io")
            site.start("train")
            content = json.loads(site.imprint("doctor", "--json").stdout)
            found = by_name(content["findings"])
            assert content["ok"] is True
            statuses = {name: finding["status"] for name, finding in found.items()}
            assert set(statuses.values()) == {"ok", "note"}
            for name in ("settings", "broker", "workers", "database", "clock", "object store", "disk", "device"):
                assert statuses[name] == "ok"
            assert statuses["base model sd15"] == "ok"
            assert found["base model sd15"]["text"] == str(base_model)
            assert statuses["Flower"] == statuses["base model sdxl"] == "note"
            assert found["workers"]["text"] == "io@test, train@test"
            assert "secret" not in found["broker"]["text"]
            assert "CPU" in found["device"]["text"]
            assert list(site.services.store.list("doctor/")) == []

            assert site.stop("io") == 0
            done = run_doctor(site)
            assert done.returncode == 1
            assert "todo  workers: no worker takes from io.finish, io, cpu, sweep, fetch, notices" in done.stdout
            assert "ok    broker: redis://" in done.stdout
        finally:
            site.end()


def test_a_new_installation_is_told_what_to_do(tmp_path: Path) -> None:
    """Before anything was started: nothing is made, and each missing thing has its own line."""
    site = Site(tmp_path, tmp_path, "redis://127.0.0.1:1/0")
    nothing = {"IMPRINT_BROKER_URL": "", "IMPRINT_BASE_MODELS": "{}"}
    done = run_doctor(site, "--json", **nothing, IMPRINT_FLOWER_PORT="1")
    found = by_name(json.loads(done.stdout)["findings"])
    assert done.returncode == 1
    assert {name for name, finding in found.items() if finding["status"] == "todo"} == {"broker", "database"}
    assert "make up" in found["broker"]["text"]
    assert "imprint migrate" in found["database"]["text"]
    assert not (tmp_path / "home" / "imprint.db").exists()


def test_what_is_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").write_text("a file where a folder should be")
    (tmp_path / "old").mkdir()
    address = f"sqlite:///{tmp_path}/old.db"
    database = Database(address)
    database.migrate(known_revisions()[-1])
    database.close()
    monkeypatch.setattr(doctor, "DISK_WANTED_BYTES", 2**60)
    found = examined(
        home=tmp_path / "home",
        broker_url=f"redis://127.0.0.1:{free_port()}/0",
        database_url=address,
        store_url=str(tmp_path / "store"),
        base_models={"mine": str(tmp_path / "old"), "sd15": str(tmp_path / "nowhere")},
        training_adapters={"z-image-turbo": str(tmp_path / "adapter.safetensors")},
        webhook_secret="short",
    )
    todo = {name for name, finding in found.items() if finding.status == "todo"}
    assert todo == {
        "settings", "broker", "database", "object store", "disk", "base model mine", "base model sd15",
        "training adapter for z-image-turbo",
    }  # fmt: skip
    assert "IMPRINT_WEBHOOK_SECRET" in found["settings"].text
    assert f"revision {known_revisions()[-1]}, the newest is {known_revisions()[0]}" in found["database"].text
    assert "no model_index.json" in found["base model mine"].text


def test_a_database_that_a_newer_imprint_has_migrated(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/imprint.db")
    database.migrate()
    with database.engine.connect() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        connection.commit()
    database.close()
    found = examined(home=tmp_path)["database"]
    assert (found.status, "install the newer Imprint" in found.text) == ("todo", True)


def test_clocks_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with postgres_server() as server:
        address = new_database(server)
        database = Database(address)
        database.migrate()
        database.close()
        assert examined(home=tmp_path, database_url=address)["clock"].status == "ok"
        time = doctor.time
        monkeypatch.setattr(doctor, "time", SimpleNamespace(time=lambda: time.time() + 60))
        found = examined(home=tmp_path, database_url=address)["clock"]
        assert (found.status, found.text[:8]) == ("todo", "60 s off")
    found = examined(home=tmp_path, database_url=address)["database"]
    assert (found.status, "does not answer" in found.text) == ("todo", True)


def test_a_check_that_fails_in_its_own_way_does_not_hide_the_others(tmp_path: Path) -> None:
    def _strange(_here: Services) -> Any:
        raise ZeroDivisionError("by nobody")

    checks = [_strange, doctor._disk]
    found = doctor.examine(Services(Settings(_env_file=None, home=tmp_path)), checks)
    assert [(finding.name, finding.status) for finding in found] == [("strange", "todo"), ("disk", "ok")]
