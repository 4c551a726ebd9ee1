"""Periodic tasks: one part, one job, one server or one pod that fails keeps nothing else from being done."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlmodel import Session, select

import celeryconfig
import tasks.sweeps
from core.clock import utcnow
from core.settings import Settings
from jobs import service
from jobs.lifecycle.periodic import Part, run_parts
from jobs.owners import accounts
from jobs.remote import polls, runs
from jobs.services import Services
from jobs.stages.stage_runner import claim
from storage.database import DatabaseAway
from storage.tables.fetches import StoredImageFetch
from storage.tables.jobs import Job, Stage
from storage.tables.remote import PodState, RemoteRun, RentedPod, RunState
from tasks.app import app
from tasks.sweeps import PARTS
from tests.contract.jobs import balances, events, put_at, request, row
from tests.servers.absurd import AbsurdServer, absurd_server

HUGE = str(2**70)


@pytest.fixture
def provider() -> Iterator[AbsurdServer]:
    """A provider that still has every pod of these tests."""
    with absurd_server() as made:
        pods = [f'{{"id": "{pod_id(n)}", "name": "{pod_id(n)}", "status": "RUNNING"}}' for n in range(3)]
        made.answers["/pods"] = '{"pods": [' + ", ".join(pods) + "]}"
        yield made


@pytest.fixture
def services(address: str, tmp_path: Path, provider: AbsurdServer) -> Iterator[Services]:
    settings = Settings(
        _env_file=None, home=tmp_path / "home", database_url=address, relaunch_after_s=60,
        runpod_api_key="key", runpod_url=provider.url, remote_lost_polls=3,
    )  # fmt: skip
    made = Services(settings)
    accounts.grant(made, "ada", 1000, key="welcome")
    yield made
    made.database.close()


# ---- the parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(entry["task"] for entry in celeryconfig.beat_schedule.values()))
def test_every_part_of_every_periodic_task_runs_whatever_the_others_do(
    services: Services, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """This holds for each part of each task that beat sends, also for those that will be added."""
    parts, ran = PARTS[name], []
    assert parts

    def failing(number: int, error: Exception) -> Part:
        def run(_: Services) -> None:
            ran.append(parts[number].name)
            raise error

        return Part(parts[number].name, run)

    monkeypatch.setattr(tasks.sweeps, "services", lambda: services)
    for error in (ValueError("a defect"), OverflowError(), DatabaseAway("the server stops", "57P01")):
        ran.clear()
        broken = [failing(number, error) for number in range(len(parts))]
        monkeypatch.setattr(tasks.sweeps, "PARTS", {**PARTS, name: broken})
        assert app.tasks[name].apply().successful(), "one failure is not the task's"
        assert ran == [part.name for part in parts]
    assert "Traceback" in caplog.text, "a defect is logged with its place"


def test_it_says_which_parts_failed(services: Services, caplog: pytest.LogCaptureFixture) -> None:
    def away(_: Services) -> None:
        raise DatabaseAway("the server stops", "57P01")

    with caplog.at_level(logging.WARNING):
        assert run_parts(services, [Part("good", lambda _: None), Part("away", away)]) == ["away"]
    assert [record.levelname for record in caplog.records] == ["WARNING"], "an outage is no defect"


# ---- one job of a sweep ---------------------------------------------------------------------------------------


def test_one_job_that_cannot_be_repaired_keeps_no_other_from_it(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [service.submit(services, request(services, seed=seed)).job_id for seed in range(3)]
    with services.database.writing() as session:
        late = utcnow() - timedelta(hours=1)
        session.execute(sa.update(Job).values(next_look_at=late))
        refuse_changes(session, ids[1])
    run_parts(services, PARTS["imprint.sweep"][:1])
    assert [len(events(services, job_id, "retry")) for job_id in (ids[0], ids[2])] == [1, 1]
    assert f"repair failed for {ids[1]}" in caplog.text


def test_one_fetch_that_cannot_be_repaired_keeps_no_other_from_it(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    late = utcnow() - timedelta(hours=1)
    with services.database.writing() as session:
        for number in range(3):
            session.add(
                StoredImageFetch(
                    id=f"fetch_{number}", owner_id="ada", subject_id="rex", addresses=["https://example.com/1.png"],
                    results=[None], attempt=1, leased=True, next_look_at=late,
                )
            )  # fmt: skip
        session.flush()
        refuse_changes(session, "fetch_1", "image_fetch")
    run_parts(services, [part for part in PARTS["imprint.sweep"] if part.name == "fetches"])
    with services.database.reading() as session:
        leased = {fetch.id: fetch.leased for fetch in session.exec(select(StoredImageFetch))}
    assert leased == {"fetch_0": False, "fetch_1": True, "fetch_2": False}
    assert "repair failed for fetch_1" in caplog.text


def refuse_changes(session: Session, row_id: str, table: str = "training_job") -> None:
    """A row that a rule of the database refuses to change: the defect of one job."""
    if session.get_bind().dialect.name == "sqlite":
        refuse = "BEGIN SELECT RAISE(ABORT, 'refused'); END"
    else:
        body = "BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '23514'; END"
        session.execute(sa.text(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"))
        refuse = "EXECUTE FUNCTION refuse()"
    when = f"FOR EACH ROW WHEN (OLD.id = '{row_id}')"
    session.execute(sa.text(f"CREATE TRIGGER refuse BEFORE UPDATE ON {table} {when} {refuse}"))


# ---- absurd numbers of remote servers -------------------------------------------------------------------------


def pod_id(number: int) -> str:
    return f"pod_{number:026}"


def remote_job(services: Services, server: AbsurdServer, number: int) -> str:
    """A job that a rented server trains."""
    job_id: str = service.submit(services, request(services, seed=number, backend="ai-toolkit")).job_id
    put_at(services, job_id, Stage.TRAIN, total_steps=100)
    lease, _ = claim(services, job_id, Stage.TRAIN)
    with services.database.writing() as session:
        pod = pod_id(number)
        session.add(RentedPod(id=pod, name=pod, provider_id=pod, state=PodState.READY, url=server.url))
        session.flush()
        run = runs.get_or_create(session, lease, services.settings)
        runs.assign(lease, run, services.settings, session, session.get_one(RentedPod, pod))
        runs.record_submitted(session, lease, run, "x", services.settings)
        session.execute(sa.update(RemoteRun).values(looked_at=None))
    server.has_job(run.name)
    server.answers["/api/datasets/list"] = "[]"
    server.answers["/api/auth"] = '{"isAuthenticated": true}'
    server.answers["/api/jobs/x/loss"] = '{"keys": ["loss/loss"], "points": [{"step": 1, "value": 0.5}]}'
    server.answers["/api/jobs/x/samples"] = '{"samples": []}'
    server.answers["/api/jobs/x/log"] = '{"log": "", "offset": 1, "reset": false}'
    return job_id


def run_of(services: Services, job_id: str) -> RemoteRun:
    with services.database.reading() as session:
        found = runs.newest(session, job_id)
    assert found is not None
    return found


ABSURD = {
    "step 2^70": {"step": HUGE},
    "step -9000": {"step": "-9000"},
    "step 1e999": {"step": "1e999"},
    "step true": {"step": "true"},
    "step is a list": {"step": "[1]"},
    "speed": {"speed_string": f'"{"9" * 90} iter/sec"'},
    "slow": {"speed_string": f'"0.{"0" * 60}1 iter/sec"', "step": "2"},
    "null character": {"info": r'"a\u0000b"', "status": '"error"'},
    "half a surrogate pair": {"info": r'"a\ud800b"', "status": '"error"'},
    "steps in the config": {"job_config": f'{{"config": {{"process": [{{"train": {{"steps": {HUGE}}}}}]}}}}'},
    "loss 1e999": {"step": "2", "/api/jobs/x/loss": '{"keys": ["loss/loss"], "points": [{"step": 2, "value": 1e999}]}'},
    "loss NaN": {"step": "2", "/api/jobs/x/loss": '{"keys": ["loss/loss"], "points": [{"step": 2, "value": NaN}]}'},
    "loss 1e308": {
        "step": "2",
        "/api/jobs/x/loss": '{"keys": ["loss/loss"], "points": [{"step": 2, "value": 1e308}]}',
    },
    "log offset 2^70": {"/api/jobs/x/log": f'{{"log": "", "offset": {HUGE}, "reset": false}}'},
    "log offset -1": {"/api/jobs/x/log": '{"log": "", "offset": -1, "reset": false}'},
    "sample step": {"step": "2", "/api/jobs/x/samples": f'{{"samples": ["/a/1__{"9" * 9}_{"9" * 4}.png"]}}'},
    "sample path": {"step": "2", "/api/jobs/x/samples": r'{"samples": ["/a\ud800/1__1_1.png"]}'},
}  # fmt: skip


@pytest.mark.parametrize("address", ["postgresql"], indirect=True)  # the database that refuses such values
@pytest.mark.parametrize("case", ABSURD)
def test_absurd_numbers_of_one_server_reach_nothing_else(services: Services, case: str) -> None:
    """The other server's job is polled, the absurd one can be cancelled, and its page and bill are in order."""
    with ExitStack() as stack:
        absurd, honest = (stack.enter_context(absurd_server()) for _ in range(2))
        bad, good = remote_job(services, absurd, 1), remote_job(services, honest, 2)
        honest.has_job(run_of(services, good).name, step="40")
        fields = {key: value for key, value in ABSURD[case].items() if not key.startswith("/")}
        absurd.has_job(run_of(services, bad).name, **fields)
        absurd.answers |= {key: value for key, value in ABSURD[case].items() if key.startswith("/")}
        for _ in range(2):
            with services.database.writing() as session:
                session.execute(sa.update(RemoteRun).values(looked_at=None))
            assert run_parts(services, PARTS["imprint.poll_remote"]) == [], case
        assert row(services, good).step == 40
        assert run_of(services, good).missed == 0
        view = service.get(services, bad)
        assert 0 <= view.step <= view.total_steps
        view.to_dict()
        assert view.model_dump_json()
        held = balances(services)["held"]
        service.cancel(services, bad)
        after = balances(services)
        assert after["held"] < held
        assert 0 <= after["spent"] <= 10


def test_an_answer_that_cannot_be_recorded_counts_as_no_answer(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever gets past the bounds: it costs its own run a poll, and after some the attempt, and no other anything."""
    with ExitStack() as stack:
        absurd, honest = (stack.enter_context(absurd_server()) for _ in range(2))
        bad, good = remote_job(services, absurd, 1), remote_job(services, honest, 2)
        name = run_of(services, bad).name
        record = polls.record_result

        def record_unless_bad(session: object, polled: polls.PolledRun, settings: Settings) -> object:
            if polled.run.name == name and polled.result is not None:
                raise OverflowError("no number that a column has")
            return record(session, polled, settings)  # type: ignore[arg-type]

        monkeypatch.setattr(polls, "record_result", record_unless_bad)
        for missed in (1, 2):
            with services.database.writing() as session:
                session.execute(sa.update(RemoteRun).values(looked_at=None))
            assert run_parts(services, PARTS["imprint.poll_remote"]) == []
            assert (run_of(services, bad).missed, run_of(services, good).missed) == (missed, 0)
        with services.database.writing() as session:
            session.execute(sa.update(RemoteRun).values(looked_at=None))
        run_parts(services, PARTS["imprint.poll_remote"])
        assert run_of(services, bad).state == RunState.ENDED
        assert row(services, good).status == "training"


def test_a_pod_list_with_absurd_prices_deletes_and_checks_the_others(services: Services) -> None:
    with absurd_server() as provider:
        made = Services(services.settings.model_copy(update={"runpod_url": provider.url}))
        pod = '{"id": "a", "name": "another-pod", "status": "RUNNING", "cost": %s, "gpu": null}'
        provider.answers["/pods"] = '{"pods": [' + ", ".join(pod % cost for cost in (HUGE, "1e999", "-5", '"x"')) + "]}"
        runpod = made.runpod
        assert runpod is not None
        assert [one.cost_microdollars_per_h for one in runpod.pods()] == [0, 0, 0, 0]
        gpu = '{"id": "a%d", "memory": %s, "price": {"secure": %s}, "availability": "HIGH"}'
        gpus = [gpu % (number, price, price) for number, price in enumerate((HUGE, "1e999", "-5", "0.5"))]
        provider.answers["/catalog"] = '{"gpus": [' + ", ".join(gpus) + "]}"
        assert [one.available for one in runpod.gpus().values()] == [False, False, False, True]
        assert run_parts(made, PARTS["imprint.poll_remote"]) == []
        made.database.close()
