"""Migrations run once however many processes start together, and nobody works on a database that it does not know."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlmodel import select

from core.clock import utcnow
from core.errors import SchemaUnknown
from core.settings import Settings
from credits import ledger
from credits.audit import audit
from jobs import screening, shared_objects
from jobs.deletion import requests
from jobs.deletion import run as deletions
from jobs.drawings import drawings
from jobs.services import Services
from jobs.stages import stage_runner, steps
from jobs.subjects import captions, subject_notes
from storage.database import Database, known_revisions
from storage.owners import OWNED
from storage.tables.deletions import Deletion
from storage.tables.jobs import Job, JobPicture
from storage.tables.pictures import PreparedPicture, StoredPicture, Subject
from tests.servers.databases import BOTH
from tests.servers.launcher import run
from tests.servers.postgres import new_database
from tests.site import ROOT
from training.families.registry import FAMILIES

pytestmark = pytest.mark.both_databases

_PROCESSES = 6
# Waits for the others, then does what every process of Imprint does first, and says which revisions it ran.
_START = """
import logging, sys, time
from pathlib import Path
from storage.database import Database
logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s", stream=sys.stdout)
folder = Path(sys.argv[2])
(folder / f"ready-{sys.argv[3]}").touch()
while len(list(folder.glob("ready-*"))) < int(sys.argv[4]):
    time.sleep(0.005)
Database(sys.argv[1]).migrate()
"""


@pytest.fixture(params=BOTH)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database without a table."""
    if request.param == "postgresql":
        server, _ = request.getfixturevalue("postgres")
        return new_database(server)
    return f"sqlite:///{tmp_path}/imprint.db"


def test_processes_that_start_together_migrate_once(empty: str, tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _START, empty, str(tmp_path), str(number), str(_PROCESSES)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(_PROCESSES)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0] * _PROCESSES, outputs
    ran = [line for text in outputs for line in text.splitlines() if "Running upgrade" in line]
    assert len(ran) == len(known_revisions()), ran
    database = Database(empty)
    assert database.is_at("head")
    database.close()


def test_pictures_of_before_there_were_masks_are_none(empty: str) -> None:
    database = Database(empty)
    database.migrate("0007")
    old = (
        "INSERT INTO picture (id, owner_id, subject_id, sha256, key, size_bytes, created_at)"
        " VALUES ('pic_1', 'ada', 'dog', '', '', 1, '2026-01-01 00:00:00')"
    )
    with database.engine.begin() as connection:
        connection.execute(sa.text(old))
    database.migrate()
    with database.reading() as session:
        assert session.get_one(StoredPicture, "pic_1").is_mask is False
    database.close()


def test_jobs_of_before_get_their_columns_and_their_waiting_note(empty: str) -> None:
    database = Database(empty)
    database.migrate("0008")
    columns = (
        "id, owner_id, subject_id, request_sha256, spec, status, stage, attempt, step, total_steps, failure_message,"
        " lease_token, launches, next_look_at, train_seconds, checkpoint_step, created_at"
    )
    spec = {"family": "sdxl", "backend": "ai-toolkit", "resolution": 768, "batch_size": 2}
    old = sa.text(
        f"INSERT INTO training_job ({columns}) VALUES (:id, 'ada', 'dog', '', :spec, :status, 'train', 1, 0, 100,"  # noqa: S608
        " :message, 0, 0, '2026-01-01 00:00:00', 0.0, 0, '2026-01-01 00:00:00')"
    )
    jobs = [
        {"id": f"job_{number:04d}", "spec": json.dumps(spec), "status": "training", "message": "no machine is free"}
        for number in range(1001)  # more than one batch
    ]
    jobs.append({"id": "job_failed", "spec": json.dumps(spec), "status": "failed", "message": "it burnt"})
    with database.engine.begin() as connection:
        connection.execute(old, jobs)
    database.migrate()
    with database.reading() as session:
        rows = session.exec(select(Job)).all()
        assert len(rows) == len(jobs)
        assert {(row.family, row.backend, row.resolution, row.batch_size) for row in rows} == {tuple(spec.values())}
        assert {(row.status, row.waiting_note, row.failure_message) for row in rows} == {
            ("training", "no machine is free", None),
            ("failed", None, "it burnt"),
        }
    database.close()


def test_messages_of_before_keep_what_they_hold_and_callbacks_may_be_added(empty: str) -> None:
    database = Database(empty)
    database.migrate("0009")
    columns = "id, kind, topic, job_id, sequence, payload, created_at, due_at, attempts, sent_at, dead_at, last_error"
    insert = sa.text(
        f"INSERT INTO outbox_message ({columns}) VALUES (:id, :kind, 'topic', 'job', :sequence, '{{}}',"  # noqa: S608
        " '2026-01-01 00:00:00', '2026-01-02 00:00:00', 3, :sent_at, NULL, 'the receiver answered 500')"
    )
    old = [
        {
            "id": f"msg_{number}",
            "kind": kind,
            "sequence": number,
            "sent_at": "2026-01-03 00:00:00" if number > 3 else None,
        }
        for number, kind in enumerate(("launch", "notice", "cleanup", "mail", "alert"), 1)
    ]
    with database.engine.begin() as connection:
        connection.execute(insert, old)
        before = connection.execute(sa.text(f"SELECT {columns} FROM outbox_message ORDER BY id")).all()  # noqa: S608
    database.migrate()
    with database.engine.begin() as connection:
        assert connection.execute(sa.text(f"SELECT {columns} FROM outbox_message ORDER BY id")).all() == before  # noqa: S608
        for number, kind in ((6, "callback"), (7, "confirmation")):
            connection.execute(insert, {"id": f"msg_{number}", "kind": kind, "sequence": number, "sent_at": None})
    found = {index["name"] for index in sa.inspect(database.engine).get_indexes("outbox_message")}
    assert found >= {"outbox_message_due", "outbox_message_waiting", "outbox_message_task"}
    with pytest.raises(sa.exc.IntegrityError), database.engine.begin() as connection:
        connection.execute(insert, {"id": "msg_8", "kind": "rumour", "sequence": 8, "sent_at": None})
    database.close()


_OLD_ROWS = (
    "INSERT INTO credit_account (id, owner_id, granted, spent, held, seq) VALUES (:id, :owner, :credits, 0, 0, 1)",
    "INSERT INTO credit_entry (id, account_id, seq, kind, counterparty, amount, idempotency_key, request_hash,"
    " created_at) VALUES (:id, :id, 1, 'grant', 'issued', :credits, 'welcome', :hash, :at)",
    "INSERT INTO training_job (id, owner_id, subject_id, request_sha256, spec, status, stage, attempt, step,"
    " total_steps, lease_token, launches, next_look_at, train_seconds, checkpoint_step, created_at)"
    " VALUES (:id, :owner, 'dog', '', '{}', 'failed', 'train', 1, 0, 100, 0, 0, :at, 0.0, 0, :at)",
    "INSERT INTO picture (id, owner_id, subject_id, sha256, key, size_bytes, created_at)"
    " VALUES (:id, :owner, 'dog', '', '', 1, :at)",
    "INSERT INTO subject (owner_id, id, train_automatically, profile_sets, updated_at)"
    " VALUES (:owner, 'dog', :no, 0, :at)",
    "INSERT INTO api_token (id, sha256, name, owner_id, scopes, created_at)"
    " VALUES (:id, :id, 'test', :owner, 'read', :at)",
    "INSERT INTO notice_preferences (owner_id, events, updated_at) VALUES (:owner, '[]', :at)",
    "INSERT INTO disabled_receiver (owner_id, destination, reason, disabled_at)"
    " VALUES (:owner, 'https://app.example', 'gone', :at)",
    "INSERT INTO outbox_message (id, kind, topic, owner_id, sequence, payload, created_at, due_at, attempts)"
    " VALUES (:id, 'mail', 'credits.low', :owner, 1, '{}', :at, :at, 0)",
)
_READ_AS_LATIN_1, _ZOE_READ_AS_LATIN_1 = (name.encode().decode("latin-1") for name in ("田中", "Zoë"))
# What each owner of before is called after the migration.
_RENAMED = {
    "ada": "ada", "jose\u0301": "josé", _READ_AS_LATIN_1: "田中", " eve ": "eve",
    "me": "me", "me ": "me ", "Zoë": "Zoë", _ZOE_READ_AS_LATIN_1: _ZOE_READ_AS_LATIN_1,
    "bo\u200bb": "bo\u200bb",
}  # fmt: skip


def test_owners_get_their_one_name_and_two_accounts_are_never_merged(
    empty: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(empty)
    database.migrate("0009")
    there = set(OWNED) & set(sa.inspect(database.engine).get_table_names())
    with database.engine.begin() as connection:
        for number, name in enumerate(_RENAMED, start=1):
            values = {"id": f"x_{number}", "owner": name, "credits": number, "hash": "0" * 64, "no": False}
            for statement in _OLD_ROWS:
                connection.execute(sa.text(statement), values | {"at": "2026-01-01 00:00:00.000000"})
    with caplog.at_level("WARNING", logger="storage.migrations"):
        database.migrate()
    for table in sorted(there):
        with database.reading() as session:
            column = sa.column("owner_id", sa.String)
            names = session.execute(sa.select(column).select_from(sa.table(table))).scalars().all()
        assert sorted(map(str, names)) == sorted(_RENAMED.values()), table
    with database.reading() as session:
        assert audit(session) == []
        for number, name in enumerate(_RENAMED.values(), start=1):
            assert ledger.balance(session, name).available == number, ascii(name)
    content = " / ".join(record.getMessage() for record in caplog.records)
    assert f"the owner {_READ_AS_LATIN_1!a} is now called {'田中'!a}" in content
    assert "the owners 'me', 'me ' are spellings of one name; none is renamed (see: imprint owners)" in content
    assert f"the owners {_ZOE_READ_AS_LATIN_1!a}, {'Zoë'!a} are spellings of one name" in content
    assert "no request can use the owner's name 'bo\\u200bb'" in content
    database.close()


def test_subjects_of_before_have_no_recipe_and_can_get_one(empty: str) -> None:
    database = Database(empty)
    database.migrate("0010")
    old = (
        "INSERT INTO subject (owner_id, id, trigger_word, train_automatically, profile_sets, updated_at)"
        " VALUES ('ada', 'dog', 'sks', :yes, 2, '2026-01-01 00:00:00')"
    )
    with database.engine.begin() as connection:
        connection.execute(sa.text(old), {"yes": True})
    database.migrate()
    with database.writing() as session:
        subject = session.get_one(Subject, ("ada", "dog"))
        assert (subject.recipe, subject.trigger_word, subject.profile_sets) == (None, "sks", 2)
        subject.recipe = {"max_steps": 7}
        session.add(subject)
    with database.reading() as session:
        assert session.get_one(Subject, ("ada", "dog")).recipe == {"max_steps": 7}
    database.close()


def test_a_worker_of_before_can_insert_a_job_during_an_update(address: str) -> None:
    database = Database(address)
    new = {"family", "backend", "resolution", "batch_size", "waiting_note", "on_end", "failed_launches"}
    new |= {"queue", "priority", "shape", "expected_s", "admitted_at", "token_id"}
    columns = {column.name: column for column in sa.inspect(Job).columns}
    values = {
        name: value
        for name, value in Job(id="job_1", owner_id="ada", subject_id="dog", request_sha256="", spec={})
        .model_dump()
        .items()
        if name not in new
    }
    with database.writing() as session:
        names = ", ".join(values)
        statement = sa.text(f"INSERT INTO training_job ({names}) VALUES ({', '.join(f':{name}' for name in values)})")  # noqa: S608
        session.connection().execute(
            statement.bindparams(
                *(sa.bindparam(name, value, type_=columns[name].type) for name, value in values.items())
            )
        )
    with database.reading() as session:
        assert session.get_one(Job, "job_1").family == ""
    database.close()


def test_a_database_that_a_newer_imprint_migrated_is_left_alone(address: str) -> None:
    database = Database(address)
    with database.writing() as session:
        session.connection().execute(sa.text("UPDATE alembic_version SET version_num = '9001'"))
    with pytest.raises(SchemaUnknown, match=r"revision 9001.*newer Imprint has migrated the database"):
        database.migrate()
    with database.engine.connect() as connection:
        assert database.revision(connection) == "9001"
    database.close()


def test_every_process_says_so_and_ends(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/imprint.db"
    database = Database(address)
    database.migrate()
    with database.writing() as session:
        session.connection().execute(sa.text("UPDATE alembic_version SET version_num = '9001'"))
    database.close()
    environment = {**os.environ, "IMPRINT_HOME": str(tmp_path), "IMPRINT_WEB_PORT": "0", "IMPRINT_FLOWER_PORT": "0"}
    celery = ["celery", "-A", "tasks.app"]
    for module in (["web"], ["cli.stack"], [*celery, "worker", "-Q", "io"], [*celery, "imprint", "migrate"]):
        done = run(module, cwd=ROOT, env=environment, folder=tmp_path, timeout=240)
        assert done.returncode == 1, f"{module}: {done.stdout}{done.stderr}"
        assert "a newer Imprint has migrated" in " ".join(done.stderr.split()), module
        assert "Traceback" not in done.stderr, module


def test_jobs_and_pictures_of_before_get_what_producers_brought(empty: str) -> None:
    database = Database(empty)
    database.migrate("0009")
    columns = (
        "id, owner_id, subject_id, request_sha256, spec, status, stage, attempt, step, total_steps,"
        " lease_token, launches, next_look_at, train_seconds, checkpoint_step, created_at"
    )
    job = sa.text(
        f"INSERT INTO training_job ({columns}) VALUES (:id, 'ada', 'dog', '', '{{}}', 'training', 'train', 1, 0, 100,"  # noqa: S608
        " 0, 0, '2026-01-01 00:00:00', 0.0, 0, '2026-01-01 00:00:00')"
    )
    picture = sa.text(
        "INSERT INTO job_picture (job_id, position, reference, state, source_bytes, width, height, faults, lease_token,"
        " attempt) VALUES ('job_1', 0, 'pic_1', 'waiting', 0, 0, 0, '[]', 0, 0)"
    )
    with database.engine.begin() as connection:
        connection.execute(job, [{"id": "job_1"}, {"id": "job_2"}])
        connection.execute(picture)
    database.migrate()
    with database.reading() as session:
        old = session.get_one(Job, "job_1")
        assert (old.public_model_id, old.model_id, old.reference) == ("job_1", None, None)
        assert (old.allow_missing, old.model_link) == (False, False)
        waiting = session.get_one(JobPicture, ("job_1", 0))
        assert (waiting.name, waiting.unreachable_since) == (None, None)
    database.close()


def test_files_that_could_not_be_read_before_are_tried_again(empty: str) -> None:
    database = Database(empty)
    database.migrate("0014")
    row = sa.text(
        "INSERT INTO prepared_picture (source_sha256, recipe, key, sha256, width, height, report, created_at)"
        " VALUES (:source, '512', :key, :key, 0, 0, '{}', '2026-01-01 00:00:00')"
    )
    with database.engine.begin() as connection:
        connection.execute(row, [{"source": "heic", "key": None}, {"source": "jpeg", "key": "a"}])
    database.migrate()
    with database.reading() as session:
        assert session.get(PreparedPicture, ("heic", "512")) is None
        assert session.get_one(PreparedPicture, ("jpeg", "512")).sha256 == "a"
    database.close()


def test_jobs_that_were_sent_before_there_was_admission_are_admitted(empty: str) -> None:
    database = Database(empty)
    database.migrate("0021")
    columns = (
        "id, owner_id, subject_id, request_sha256, spec, status, stage, attempt, step, total_steps, family, backend,"
        " lease_token, launches, next_look_at, train_seconds, checkpoint_step, created_at"
    )
    old = sa.text(
        f"INSERT INTO training_job ({columns}) VALUES (:id, 'ada', 'dog', '', '{{}}', :status, 'train', 1, 0, 100,"  # noqa: S608
        " 'sd15', :backend, 0, 0, '2026-01-01 00:00:00', 0.0, 0, '2026-01-01 00:00:00')"
    )
    jobs = [("job_1", "pending", "local"), ("job_2", "training", "ai-toolkit"), ("job_3", "ready", "local")]
    with database.engine.begin() as connection:
        connection.execute(old, [dict(zip(("id", "status", "backend"), job, strict=True)) for job in jobs])
    database.migrate()
    with database.reading() as session:
        rows = [session.get_one(Job, job_id) for job_id, _, _ in jobs]
        assert [(row.queue, row.admitted_at is not None, row.priority) for row in rows] == [
            ("train.sd15", True, 1),
            ("remote", True, 1),
            ("", False, 1),
        ]
    database.close()


def test_a_training_of_before_can_be_drawn_with(empty: str) -> None:
    database = Database(empty)
    database.migrate("0019")
    spec = {"base_model": "sd15", "trigger_word": "sks", "family": "sd15", "resolution": 512, "seed": 7}
    job = sa.text(
        "INSERT INTO training_job (id, owner_id, subject_id, request_sha256, spec, status, stage, attempt, step,"
        " total_steps, lora_key, lease_token, launches, next_look_at, train_seconds, checkpoint_step, created_at)"
        " VALUES ('job_1', 'ada', 'dog', '', :spec, 'ready', 'settle', 1, 9, 9, 'models/job_1/lora.safetensors',"
        " 0, 0, '2026-01-01 00:00:00', 0.0, 0, '2026-01-01 00:00:00')"
    )
    with database.engine.begin() as connection:
        connection.execute(job, {"spec": json.dumps(spec)})
    database.migrate()
    with database.writing() as session:
        ledger.grant(session, "ada", 10, key="welcome")
    services = Services(Settings(_env_file=None, database_url=empty))  # type: ignore[arg-type]
    made = drawings.submit(services, {"owner_id": "ada", "job_id": "job_1", "prompt": "on a beach", "seed": 2**32 - 1})
    assert drawings.get(services, made.drawing_id, "ada") == made
    assert (made.seed, made.pictures, made.credits.held) == (2**32 - 1, [], 2)
    services.database.close()
    database.close()


def test_a_subject_and_its_training_of_before_have_captions_crops_screening_a_review_and_a_deletion(
    empty: str, tmp_path: Path
) -> None:
    """What migrations 0018, 0019, 0021, 0024 and 0025 brought works on rows of before."""
    database = Database(empty)
    database.migrate("0017")
    at, spec = "2026-01-01 00:00:00", {"base_model": "sd15", "trigger_word": "sks", "family": "sd15", "seed": 7}
    spec |= {name: FAMILIES["sd15"].recipe[name] for name in ("rank", "alpha", "learning_rate", "resolution", "epochs")}
    png = f"{1:064x}"
    rows: dict[str, list[dict[str, object]]] = {
        "subject": [
            {"owner_id": "ada", "id": "dog", "train_automatically": False, "profile_sets": 0, "updated_at": at}
        ],
        "picture": [
            {"id": f"pic_{n}", "owner_id": "ada", "subject_id": "dog", "sha256": f"{n:064x}", "key": f"originals/{n}",
             "size_bytes": 1, "created_at": at, "caption": "a dog", "is_mask": False} for n in range(5)
        ],
        "training_job": [
            {"id": "job_1", "owner_id": "ada", "subject_id": "dog", "request_sha256": "", "spec": json.dumps(spec),
             "status": "training", "stage": "dataset", "attempt": 0, "step": 0, "total_steps": 9, "lease_token": 0,
             "launches": 0, "next_look_at": at, "train_seconds": 0.0, "checkpoint_step": 0, "created_at": at,
             "family": "sd15", "backend": "local", "resolution": 512, "batch_size": 1}
        ],
        "job_picture": [
            {"job_id": "job_1", "position": n, "reference": f"pic_{n}", "state": "good", "source_bytes": 0,
             "width": 512, "height": 512, "faults": "[]", "lease_token": 0, "attempt": 1,
             "prepared_sha256": f"{n + 1:064x}", "caption": "a dog"} for n in range(5)
        ],
    }  # fmt: skip
    with database.engine.begin() as connection:
        for table, values in rows.items():
            names = ", ".join(values[0])
            marks = ", ".join(f":{name}" for name in values[0])
            connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), values)  # noqa: S608 - ours
    database.migrate()
    services = Services(
        Settings(_env_file=None, database_url=empty, home=tmp_path / "home", screen_task="shop.screen")  # type: ignore[arg-type]
    )
    # 0018: captions change and change back, on pictures of before; notes are kept.
    captions.replace(services, "ada", "dog", "a dog", "a puppy")
    assert {one.caption for one in captions.undo(services, "ada", "dog").changed} == {"a dog"}
    subject_notes.add(services, "ada", "dog", ["one"])
    assert subject_notes.get(services, "ada", "dog") == ["one"]
    # 0024: the pictures are whole, and the job has no notes.
    with database.reading() as session:
        assert {one.crop for one in session.exec(select(StoredPicture))} == {None}
        job = session.get_one(Job, "job_1")
        assert (job.notes, job.needs_captions, job.review, job.thinned_at) == (None, False, False, None)
    # 0021: the pictures of the job of before are screened like all others.
    with pytest.raises(stage_runner.NothingToDo):
        steps.dataset(services, "job_1")
    for number in range(5):
        screening.answer(services, "accept", f"{number + 1:064x}")
    steps.dataset(services, "job_1")
    # 0025: an old row may be at the new stages, and at no others.
    with database.writing() as session:
        for stage in ("caption", "review"):
            session.connection().execute(sa.update(Job).values(stage=stage))
    with pytest.raises(sa.exc.IntegrityError), database.writing() as session:
        session.connection().execute(sa.update(Job).values(stage="asleep"))
    # 0019: the training and the subject are deleted, and the index finds who uses a prepared picture.
    with database.writing() as session:
        assert shared_objects.note_unused(session, [f"prepared/{png[:2]}/{png}.png"]) is None
        session.connection().execute(sa.update(Job).values(status="failed", stage="dataset", finished_at=utcnow()))
    made = requests.delete_subject(services, "ada", "dog")
    for _ in range(3):
        deletions.run(services, made.id, lambda _: None)
        with database.writing() as session:
            session.connection().execute(sa.update(Deletion).values(quiet_at=utcnow() - timedelta(seconds=1)))
    with database.reading() as session:
        assert session.get(Job, "job_1") is None
        assert session.exec(select(StoredPicture)).all() == []
    services.database.close()
    database.close()
