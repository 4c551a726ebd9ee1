"""PostgreSQL that cannot be used for a while: every class of its errors at every door, and all is well when it is back.

The errors are PostgreSQL's own: a trigger raises them with the SQLSTATE, and the driver reports them as it reports
those of a failover. The spells at the end are real: a database that becomes read-only, and sessions that the server
ends.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from fastapi.testclient import TestClient
from kombu import Connection, Exchange, Queue
from kombu.message import Message
from pydantic import SecretStr
from sqlmodel import col

import cli.main
import cli.output.terminal
import tasks.ingress
import tasks.stages
from core.clock import utcnow
from jobs import service
from jobs.lifecycle.lease_keeper import LeaseKeeper
from jobs.lifecycle.periodic import run_parts
from jobs.owners import accounts, tokens
from jobs.services import Services
from jobs.stages.control import JobControl
from jobs.stages.stage_runner import claim
from storage.database import AWAY, Database, DatabaseAway
from storage.tables.jobs import Job, Stage
from tasks.rabbitmq.ingress_queue import Ingress
from tasks.sweeps import PARTS
from tests.contract.jobs import balances, events, put_at, request, row
from tests.servers.databases import postgres
from tests.servers.postgres import new_database
from training.ports import Progress
from web.app import create_app

pytestmark = pytest.mark.both_databases

__all__ = ["postgres"]

# Each class that means "not now": connection, resources, operator, read-only, timeouts of a session, collisions.
STATES = ("08006", "08P01", "53100", "53300", "57P01", "57P03", "25006", "25P03", "25P04", "40001", "40P01")


@pytest.fixture
def address(postgres: tuple[str, str]) -> str:
    return new_database(*postgres)


@pytest.fixture
def operator(address: str) -> Iterator[sa.Engine]:
    """An operator's connection, which no trigger and no spell touches."""
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    yield engine
    engine.dispose()


def execute(operator: sa.Engine, *statements: str) -> None:
    with operator.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@contextmanager
def failing(operator: sa.Engine, table: str, sqlstate: str, times: int = 10_000) -> Iterator[None]:
    """Writes to `table` fail with `sqlstate`, the first `times` of them. A sequence counts: no rollback resets it."""
    execute(
        operator,
        "CREATE SEQUENCE failures",
        f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF nextval('failures') <= {times} THEN "
        f"RAISE EXCEPTION 'as the test wants it' USING ERRCODE = '{sqlstate}'; END IF; RETURN NULL; END $$",
        f"CREATE TRIGGER failing BEFORE INSERT OR UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION fail()",
    )
    try:
        yield
    finally:
        execute(operator, f"DROP TRIGGER failing ON {table}", "DROP FUNCTION fail()", "DROP SEQUENCE failures")


@contextmanager
def read_only(operator: sa.Engine) -> Iterator[None]:
    """A read-only spell, as seen by clients: the server ends their sessions, and new ones may only read."""
    name = operator.url.database
    execute(operator, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    end_sessions(operator)
    try:
        yield
    finally:
        execute(
            operator,
            "SET default_transaction_read_only = off",  # of this session, which is read-only too
            f"ALTER DATABASE {name} RESET default_transaction_read_only",
        )


def end_sessions(operator: sa.Engine) -> None:
    execute(
        operator,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


@contextmanager
def client_of(services: Services) -> Iterator[TestClient]:
    with TestClient(create_app(services), raise_server_exceptions=False) as client:
        secret, _ = tokens.create(services, "test", owner_id="ada", scopes=("read", "train"))
        client.headers["Authorization"] = f"Bearer {secret}"
        yield client


def count(services: Services) -> int:
    with services.database.reading() as session:
        return int(session.scalar(sa.select(sa.func.count()).select_from(Job)) or 0)


# ---- every class at every door --------------------------------------------------------------------------------


def test_the_api_answers_503_and_then_accepts_the_same_request(services: Services, operator: sa.Engine) -> None:
    with client_of(services) as client:
        for number, sqlstate in enumerate(STATES):
            body = {
                "baseModel": "sd15", "triggerWord": "sks", "resolution": 64, "maxSteps": 10,
                "imageIds": request(services)["images"],
            }  # fmt: skip
            headers = {"Idempotency-Key": f"key-{number}"}
            with failing(operator, "training_job", sqlstate):
                answer = client.post("/api/influencer/dog/lora/train", json=body, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), (sqlstate, answer.text)
                assert int(answer.headers["Retry-After"]) > 0
            answer = client.post("/api/influencer/dog/lora/train", json=body, headers=headers)
            assert answer.status_code == 202, (sqlstate, answer.text)
    assert count(services) == len(STATES)


def test_an_applications_task_waits_and_is_one_job(
    services: Services, operator: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.ingress, "services", lambda: services)
    for number, sqlstate in enumerate(STATES):
        with failing(operator, "training_job", sqlstate, times=3):
            done = tasks.ingress.train_lora.apply(kwargs=request(services))
            assert done.successful(), (sqlstate, done.result)
        assert count(services) == number + 1
        with failing(operator, "training_job", sqlstate, times=3):
            assert tasks.ingress.cancel.apply(args=(done.get()["job_id"],)).get()["status"] == "cancelled", sqlstate
    assert balances(services)["held"] == 0


def test_a_step_is_tried_again(services: Services, operator: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.stages, "services", lambda: services)
    for sqlstate in STATES:
        job_id = service.submit(services, request(services)).job_id
        put_at(services, job_id, Stage.SETTLE)
        with failing(operator, "training_job", sqlstate, times=3):
            done = tasks.stages.settle.apply(args=(job_id,))
            assert done.successful(), (sqlstate, done.result)
        assert row(services, job_id).status == "ready"
    assert balances(services)["held"] == 0


def test_a_sweep_goes_on_in_the_next_round(services: Services, operator: sa.Engine) -> None:
    for sqlstate in STATES:
        job_id = service.submit(services, request(services)).job_id
        with services.database.writing() as session:
            late = utcnow() - timedelta(hours=1)
            session.execute(sa.update(Job).where(col(Job.id) == job_id).values(next_look_at=late))
        with failing(operator, "training_job", sqlstate):
            assert run_parts(services, PARTS["imprint.sweep"][:1]) == ["repair"], sqlstate
        assert run_parts(services, PARTS["imprint.sweep"][:1]) == []
        assert [event["reason"] for event in events(services, job_id, "retry")] == ["no worker was working on it"]
        service.cancel(services, job_id)  # the next job needs its place


def test_a_command_says_so_in_one_line(
    services: Services, operator: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cli.main, cli.output.terminal):
        monkeypatch.setattr(module, "services", lambda: services)
    monkeypatch.setattr(cli.main, "make_private", lambda _: None)
    for sqlstate in STATES:
        job_id = service.submit(services, request(services)).job_id
        with failing(operator, "training_job", sqlstate):
            done = CliRunner().invoke(cli.main.imprint, ["cancel", job_id, "--json"])
            assert done.exit_code == 1, (sqlstate, done.output, done.exception)
            assert json.loads(done.output)["error"] == "unavailable", sqlstate
            assert sqlstate in json.loads(done.output)["message"]
        done = CliRunner().invoke(cli.main.imprint, ["cancel", job_id, "--json"])
        assert (done.exit_code, json.loads(done.output)["status"]) == (0, "cancelled")


def test_the_ingress_keeps_the_message(services: Services, operator: sa.Engine) -> None:
    settings = services.settings.model_copy(update={"ingress_owner": "ada", "ingress_url": SecretStr("memory://")})
    with Connection("memory://") as connection:
        for number, sqlstate in enumerate(STATES):
            ingress = Ingress(Services(settings))
            message = delivered(connection, request(services)["images"], number)
            ingress._waiting.append(message)
            with failing(operator, "training_job", sqlstate):
                ingress.on_iteration()
                assert not message.acknowledged, sqlstate
                assert list(ingress._waiting) == [message]
            ingress._not_before = 0.0
            ingress.on_iteration()
            assert message.acknowledged
            assert (ingress.accepted, ingress.refused) == (1, {})
            ingress.services.database.close()
    assert count(services) == len(STATES)


def delivered(connection: Connection, images: list[str], number: int) -> Message:
    queue = Queue(f"model_training_{number}", Exchange("test"), routing_key=str(number))
    body = {"style_id": f"dog {number}", "image_paths": images, "num_epochs": 10}
    bound = queue(connection.default_channel)
    bound.declare()
    connection.Producer().publish(body, exchange=queue.exchange, routing_key=str(number), serializer="json")
    message = bound.get(no_ack=False)
    assert message is not None
    return message


# ---- what is an outage, and what is a defect ------------------------------------------------------------------


@pytest.mark.parametrize("sqlstate", ["23505", "23514", "42P01", "42703", "22003", "22021", "0A000", "XX000"])
def test_a_defect_or_a_broken_rule_is_no_outage(services: Services, operator: sa.Engine, sqlstate: str) -> None:
    """Else it would be tried again and again, and a request would be answered with "try again later"."""
    with failing(operator, "training_job", sqlstate), pytest.raises(sa.exc.DBAPIError):
        service.submit(services, request(services))


def test_an_outage_names_no_statement_and_no_value(services: Services, operator: sa.Engine) -> None:
    with failing(operator, "training_job", "25006"), pytest.raises(DatabaseAway) as away:
        service.submit(services, request(services))
    assert str(away.value) == "as the test wants it (25006)"


def test_on_sqlite_a_locked_or_full_file_is_an_outage_and_a_wrong_statement_is_not(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/imprint.db")
    database.migrate()
    with pytest.raises(sa.exc.OperationalError), database.reading() as session:
        session.connection().exec_driver_sql("SELECT * FROM no_such_table")
    with database.writing() as session:
        session.connection().exec_driver_sql("PRAGMA query_only = ON")
        with pytest.raises(AWAY):
            session.connection().exec_driver_sql("DELETE FROM training_job")
    database.close()


# ---- real spells ----------------------------------------------------------------------------------------------


def test_after_a_read_only_spell_the_first_request_succeeds(
    services: Services, operator: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.routes.service._CACHE_S", 0.0)
    body = {"baseModel": "sd15", "triggerWord": "sks", "resolution": 64, "maxSteps": 10}
    with client_of(services) as client:
        body |= {"imageIds": request(services)["images"]}

        def train(key: str) -> int:
            headers = {"Idempotency-Key": key}
            return client.post("/api/influencer/dog/lora/train", json=body, headers=headers).status_code

        with read_only(operator):
            assert train("one") == 503
            assert client.get("/readyz").json()["database"] == "away"
            assert client.get("/api/account").status_code == 200, "what only reads goes on"
        assert train("one") == 202, "the sessions of the spell are not used again"
        assert client.get("/readyz").json()["database"] == "ok"


def test_sessions_that_the_server_ended_are_replaced(services: Services, operator: sa.Engine) -> None:
    for number in range(3):
        end_sessions(operator)
        assert accounts.grant(services, "ada", 1, key=f"after the {number}th restart")


def test_a_session_ended_in_mid_transaction_is_an_outage_and_the_next_one_works(
    services: Services, operator: sa.Engine, address: str
) -> None:
    execute(operator, f"ALTER DATABASE {operator.url.database} SET idle_in_transaction_session_timeout = '200ms'")
    database = Database(address)
    waiting = threading.Event()

    def idle() -> None:
        with database.writing() as session:
            session.get(Job, "job_1")
            waiting.wait(1.0)
            session.get(Job, "job_2")

    with pytest.raises(DatabaseAway):
        idle()
    with database.writing() as session:
        assert session.get(Job, "job_1") is None
    database.close()


def test_a_training_goes_on_through_a_read_only_spell(services: Services, operator: sa.Engine, job_id: str) -> None:
    """Longer than its lease: no sweep can give the job to another worker, and the first renewal finds it valid."""
    put_at(services, job_id, Stage.TRAIN, total_steps=100)
    lease, _ = claim(services, job_id, Stage.TRAIN)
    with LeaseKeeper(services.database, 0.6).keeping(lease) as held:
        control = JobControl(services.database, lease, held, 60)
        control.report(Progress(10, 100, 0.5, 9.0))
        with read_only(operator):
            for step in (20, 30):
                control.report(Progress(step, 100, 0.5, 9.0))
                assert not held.lost.wait(0.5)
                control._next_check = 0.0
                control.check()
        control.report(Progress(40, 100, 0.5, 9.0))
        control.check()
        assert row(services, job_id).step == 40
        assert [event["step"] for event in events(services, job_id, "progress")] == [10, 40]
