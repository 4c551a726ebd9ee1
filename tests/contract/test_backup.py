"""Back-up and restore between both databases and stores: every row and object, books in order, nothing half-way."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlmodel import col

from core.clock import utcnow
from core.errors import BackupInvalid
from core.settings import Settings
from jobs import service
from jobs.deletion import history, retention
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from jobs.services import Services
from notifications.messages import WAITING
from notifications.tables import MESSAGE
from storage import backup
from storage.database import Database
from storage.objects import ObjectStore
from storage.objects.local import LocalStore
from storage.tables.jobs import Job, JobEvent, Stage
from tests.contract.jobs import put_at, request
from tests.servers.postgres import new_database
from tests.servers.s3 import s3_server

pytestmark = pytest.mark.both_databases


def rows(database: Database) -> dict[str, list[str]]:
    """Every row of every table but the migrations' own, as sorted text without the databases' ways with times."""
    schema = sa.MetaData()
    with database.engine.connect() as connection:
        schema.reflect(connection)
        return {
            name: sorted(
                json.dumps([backup._to_json(value) for value in row]) for row in connection.execute(table.select())
            )
            for name, table in schema.tables.items()
        }


@pytest.fixture
def elsewhere(address: str, postgres: tuple[str, str], tmp_path: Path) -> Iterator[Database]:
    """An empty database of the other kind."""
    is_sqlite = address.startswith("sqlite")
    database = Database(new_database(postgres[0]) if is_sqlite else f"sqlite:///{tmp_path}/elsewhere.db")
    yield database
    database.close()


@pytest.fixture
def other_store(request: pytest.FixtureRequest, address: str, tmp_path: Path) -> Iterator[ObjectStore]:
    if address.startswith("sqlite"):
        with s3_server() as server:
            yield server.store(server.bucket(), prefix="some/where")
    else:
        yield LocalStore(tmp_path / "other store")


def test_everything_comes_back_on_the_other_database(
    services: Services, job_id: str, elsewhere: Database, other_store: ObjectStore, tmp_path: Path
) -> None:
    put_at(
        services, job_id, Stage.TRAIN, step=7, lease_until=utcnow(), lease_holder="train@there", loss=0.1234567890123
    )
    services.store.put(f"checkpoints/{job_id}/00000005", b"five")
    services.store.put("models/job_1/lora_weights.safetensors", b"trained", create_only=True)
    folder = tmp_path / "backup"
    first = backup.backup(services.database, services.store, folder)
    assert first.rows["training_job"] == 1
    assert first.rows["credit_entry"] == 2

    # The second one copies what is new, and what is gone goes.
    services.store.put(f"checkpoints/{job_id}/00000006", b"six")
    services.store.delete(f"checkpoints/{job_id}/00000005")
    accounts.grant(services, "ada", 5, key="more")
    second = backup.backup(services.database, services.store, folder)
    assert backup.read_manifest(folder) == second
    assert set(LocalStore(folder / "objects").list("")) == set(services.store.list("")) == set(second.objects)

    backup.restore(elsewhere, other_store, folder)
    assert rows(elsewhere) == rows(services.database)
    assert {key: other_store.get(key) for key in other_store.list("")} == {
        key: services.store.get(key) for key in services.store.list("")
    }
    restored = Services(
        Settings(_env_file=None, home=tmp_path / "new home", database_url=elsewhere.address.render_as_string(False))
    )
    restored.__dict__["store"] = other_store
    assert sweeps.run_audit(restored) == []
    view = service.get(restored, job_id)
    assert (view.status, view.stage, view.step) == ("training", "train", 7)
    # Numbers that the database hands out go on behind the restored ones.
    last = max(event.id or 0 for event in service.events(restored, job_id))
    with restored.database.writing() as session:
        session.add(event := JobEvent(job_id=job_id, kind="progress", data={}))
        session.flush()
        assert event.id == last + 1
    # And the owner's credits can be moved: the ledger's own counts are the restored ones.
    service.cancel(restored, job_id)
    assert accounts.balance(restored, "ada").held == 0
    assert sweeps.run_audit(restored) == []
    restored.database.close()


def test_what_retention_has_left_comes_back_and_retention_goes_on(
    services: Services, job_id: str, elsewhere: Database, other_store: ObjectStore, tmp_path: Path
) -> None:
    ended = service.submit(services, request(services)).job_id
    for one in (ended, job_id):
        service.cancel(services, one)
    with services.database.writing() as session:
        session.connection().execute(
            sa.update(MESSAGE).where(MESSAGE.c.job_id == ended, WAITING).values(sent_at=utcnow())
        )
        old = sa.update(Job).where(col(Job.id) == ended)
        session.connection().execute(old.values(finished_at=utcnow() - timedelta(days=91)))
    ages = {"history_days": 90, "retention_days": 90}
    keeping = Services(services.settings.model_copy(update=ages))
    assert (history.trim(keeping), retention.sweep(keeping)) == (1, 1)
    keeping.database.close()
    before = service.get(services, ended)
    backup.backup(services.database, services.store, tmp_path / "backup")
    backup.restore(elsewhere, other_store, tmp_path / "backup")

    address = elsewhere.address.render_as_string(False)
    restored = Services(Settings(_env_file=None, home=tmp_path / "new home", database_url=address, **ages))
    restored.__dict__["store"] = other_store
    assert rows(elsewhere) == rows(services.database)
    assert (service.get(restored, ended), service.events(restored, ended)) == (before, [])
    assert sweeps.run_audit(restored) == []
    assert (history.trim(restored), retention.sweep(restored)) == (0, 0)
    with restored.database.writing() as session:  # the other one ages too
        later = sa.update(Job).where(col(Job.id) == job_id)
        session.connection().execute(later.values(finished_at=utcnow() - timedelta(days=91)))
        session.connection().execute(
            sa.update(MESSAGE).where(MESSAGE.c.job_id == job_id, WAITING).values(sent_at=utcnow())
        )
    assert (history.trim(restored), retention.sweep(restored)) == (1, 1)
    assert list(other_store.list("originals/")) == []
    assert sweeps.run_audit(restored) == []
    restored.database.close()


def test_what_cannot_be_restored_whole_is_not_begun(services: Services, job_id: str, tmp_path: Path) -> None:
    services.store.put("models/job_1/lora_weights.safetensors", b"trained")
    folder = tmp_path / "backup"
    made = backup.backup(services.database, services.store, folder)
    fresh, store = Database(f"sqlite:///{tmp_path}/fresh.db"), LocalStore(tmp_path / "fresh")

    def refused(content: str) -> None:
        with pytest.raises(BackupInvalid, match=content):
            backup.restore(fresh, store, folder)
        assert fresh.is_at(None)

    with pytest.raises(BackupInvalid, match=r"not empty.*credit_account"):
        backup.restore(services.database, services.store, folder)
    with pytest.raises(BackupInvalid, match="is not empty and has no backup"):
        backup.backup(services.database, services.store, tmp_path / "home")

    manifest = (folder / backup.MANIFEST).read_text()
    (folder / backup.MANIFEST).write_text(manifest.replace(f'"revision": "{made.revision}"', '"revision": "9001"'))
    refused("made by a newer Imprint")
    (folder / backup.MANIFEST).write_text(manifest)

    model = folder / "objects" / "models" / "job_1" / "lora_weights.safetensors"
    model.write_bytes(b"tr4ined")
    refused("is damaged")
    model.unlink()
    refused("lacks 1 object")
    model.write_bytes(b"trained")

    rows_file = folder / made.database
    whole = rows_file.read_bytes()
    rows_file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused("missing or damaged")
    rows_file.write_bytes(whole)
    (folder / backup.MANIFEST).unlink()
    refused("is not a backup")
    (folder / backup.MANIFEST).write_text(manifest)
    backup.restore(fresh, store, folder)
    assert rows(fresh) == rows(services.database)
    fresh.close()
