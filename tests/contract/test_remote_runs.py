"""The moves of a remote training in both databases: raced, repeated, cut off, and the money. No server is called."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import col

from core.clock import utcnow
from core.errors import BackendFailed, BackendUnreachable, LeaseLost, SpecInvalid
from core.settings import Settings
from credits.tables import HOLD
from jobs import runs, service, sweeps
from jobs.leases import Lease
from jobs.shell import claim
from jobs.sightings import LOST, Seen, record
from jobs.wiring import House
from storage.tables import Job, RemoteRun, RunState, Stage
from tests.contract.jobs import REQUEST, books, events, messages, put_at, request, row
from training.backends.ai_toolkit.work import Sighting

SEEN = Sighting(
    status="running", step=40, total=100, loss=0.5, seconds_per_step=0.1, seconds_left=6.0, info="Training",
    log_offset=900, grew=False, samples=(),
)  # fmt: skip


@pytest.fixture
def settings(address: str, tmp_path: Path) -> Settings:
    return Settings(
        _env_file=None, home=tmp_path / "home", database_url=address, lease_s=30, relaunch_after_s=60,
        ai_toolkit_url="http://127.0.0.1:1", remote_lost_polls=3, remote_stall_s=100, training_timeout_s=1000,
    )  # fmt: skip


@pytest.fixture
def job_id(house: House) -> str:
    found: str = service.submit(house, request(house, backend="ai-toolkit"))["job_id"]
    put_at(house, found, Stage.TRAIN, total_steps=100)
    return found


def newest(house: House, job_id: str) -> RemoteRun:
    with house.database.reading() as session:
        found = runs.newest(session, job_id)
    assert found is not None
    return found


def begun(house: House, job_id: str) -> tuple[Lease, RemoteRun]:
    """A worker has the job, and its run has a name."""
    with house.database.writing() as session:
        session.execute(sa.update(Job).where(col(Job.id) == job_id).values(next_look_at=utcnow()))
    lease, _ = claim(house, job_id, Stage.TRAIN)
    with house.database.writing() as session:
        run = runs.current(session, lease, house.settings)
    return lease, run


def submitted(house: House, job_id: str) -> RemoteRun:
    lease, run = begun(house, job_id)
    with house.database.writing() as session:
        runs.submitted(session, lease, run, "uuid-1", house.settings)
    return newest(house, job_id)


def taken(house: House) -> RemoteRun:
    """The one run, taken by a poll after the last one had its time."""
    with house.database.writing() as session:
        session.execute(sa.update(RemoteRun).values(looked_at=None))
        [run] = runs.take(session, house.settings)
    return run


def see(house: House, run: RemoteRun, sighting: Sighting | None = None, **how: Any) -> str:
    with house.database.writing() as session:
        return record(session, Seen(run, sighting, **how), house.settings)


def seen_as(**changed: Any) -> Sighting:
    return Sighting(**{**vars(SEEN), **changed})


def age(house: House, **ages_s: float) -> None:
    """Put times of the runs into the past."""
    with house.database.writing() as session:
        past = {name: utcnow() - timedelta(seconds=seconds) for name, seconds in ages_s.items()}
        session.execute(sa.update(RemoteRun).values(**past))


def test_a_run_goes_from_submission_to_collection(house: House, job_id: str) -> None:
    lease, run = begun(house, job_id)
    assert (run.attempt, run.state, run.name) == (1, RunState.SUBMITTING, f"imprint_{job_id}_1")
    with house.database.writing() as session:
        runs.submitted(session, lease, run, "uuid-1", house.settings)
    with pytest.raises(LeaseLost), house.database.writing() as session:
        lease.renew(session, 30)  # a heartbeat that was under way
    assert (row(house, job_id).lease_until, row(house, job_id).attempt) == (None, 0)

    assert see(house, taken(house), SEEN) == "recorded"
    job = row(house, job_id)
    assert (job.step, job.loss, job.seconds_left, job.seconds_per_step) == (40, 0.5, 6.0, 0.1)
    assert events(house, job_id, "progress") == [{"step": 40, "total": 100, "loss": 0.5, "seconds_left": 6.0}]
    assert newest(house, job_id).started_at is not None

    launches = messages(house, job_id).count("launch")
    assert see(house, taken(house), seen_as(status="completed", step=100, loss=None)) == "completed"
    assert messages(house, job_id).count("launch") == launches + 1
    assert (row(house, job_id).step, row(house, job_id).train_seconds > 0) == (100, True)

    _, again = begun(house, job_id)
    assert (again.attempt, again.state, again.remote_id) == (1, RunState.COMPLETED, "uuid-1")


def test_only_the_poll_that_took_a_run_last_writes_what_it_saw(house: House, job_id: str) -> None:
    submitted(house, job_id)
    with house.database.writing() as session:
        [slow] = runs.take(session, house.settings)
        assert runs.take(session, house.settings) == []  # so soon nobody else needs to look
    quick = taken(house)
    assert see(house, quick, seen_as(status="completed", step=100)) == "completed"
    for late in (SEEN, seen_as(status="completed"), seen_as(status="failed"), None):
        assert see(house, slow, late) == "overtaken"
        assert see(house, quick, late) == "overtaken"
    assert newest(house, job_id).state == RunState.COMPLETED
    assert messages(house, job_id).count("launch") == 2
    assert row(house, job_id).step == 100


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (lambda house, run: see(house, run, seen_as(status="failed", info="boom")), "backend_failed"),
        (lambda house, run: see(house, run, seen_as(status="stopped")), "backend_failed"),
        (lambda house, run: see(house, run), "backend_unreachable"),
        (lambda house, run: see(house, run, error=BackendUnreachable("gone", LOST)), "backend_unreachable"),
    ],
    ids=["error", "stopped", "unknown", "pod gone"],
)
def test_three_attempts_then_the_hold_is_released(
    house: House, job_id: str, last: Callable[[House, RemoteRun], str], code: str
) -> None:
    held = books(house)["held"]
    for attempt in (1, 2, 3):
        assert submitted(house, job_id).name == f"imprint_{job_id}_{attempt}"
        assert last(house, taken(house)) == "given up"
    job = row(house, job_id)
    assert (job.status, job.failure_code) == ("failed", code)
    assert books(house) == {"held": 0, "spent": 0, "available": 1000}
    assert held > 0
    assert [event["attempt"] for event in events(house, job_id, "retry")] == [1, 2]
    with house.database.reading() as session:
        assert [run.attempt for run in runs.uncleared(session)] == [1, 2, 3]


def test_what_will_not_get_better_is_not_tried_again(house: House, job_id: str) -> None:
    submitted(house, job_id)
    assert see(house, taken(house), seen_as(status="failed", info="CUDA out of memory. Tried …")) == "given up"
    assert row(house, job_id).failure_code == "out_of_memory"
    assert "Tried" in (newest(house, job_id).reason or "")  # for operators; not for the owner
    assert "Tried" not in (row(house, job_id).failure_message or "")


def test_a_stall_is_no_step_and_no_log_for_long(house: House, job_id: str) -> None:
    submitted(house, job_id)
    assert see(house, taken(house), SEEN) == "recorded"
    age(house, moved_at=150, submitted_at=200, started_at=200)
    assert see(house, taken(house), seen_as(grew=True, log_offset=950)) == "recorded"
    assert see(house, taken(house), seen_as(log_offset=950)) == "recorded"  # since a moment only
    age(house, moved_at=150)
    assert see(house, taken(house), seen_as(step=41)) == "recorded"
    age(house, moved_at=150)
    assert see(house, taken(house), seen_as(step=41)) == "given up"
    assert row(house, job_id).status == "training"


def test_in_the_queue_only_a_server_that_does_nothing_is_a_stall(house: House, job_id: str) -> None:
    submitted(house, job_id)
    queued = seen_as(status="queued", step=0, loss=None, info="Job queued")
    age(house, moved_at=150, submitted_at=5000)
    assert see(house, taken(house), queued, busy=True) == "recorded"
    age(house, moved_at=150)
    assert see(house, taken(house), queued, busy=False) == "given up"


def test_a_training_has_a_time_limit_from_its_start(house: House, job_id: str) -> None:
    submitted(house, job_id)
    see(house, taken(house), SEEN)
    age(house, started_at=1001)
    assert see(house, taken(house), seen_as(step=50)) == "given up"
    assert (row(house, job_id).status, row(house, job_id).failure_code) == ("failed", "timeout")


def test_a_server_is_lost_after_so_many_polls_in_a_row(house: House, job_id: str) -> None:
    submitted(house, job_id)
    silent = BackendUnreachable("no answer")
    assert [see(house, taken(house), error=silent) for _ in range(2)] == ["missed"] * 2
    assert see(house, taken(house), SEEN) == "recorded"
    assert [see(house, taken(house), error=silent) for _ in range(3)] == ["missed", "missed", "given up"]
    assert row(house, job_id).status == "training"
    assert newest(house, job_id).reason == "the server did not answer 3 times in a row"


def test_waiting_for_a_machine_is_no_attempt_and_ends_with_the_hold(house: House, job_id: str) -> None:
    for _ in range(5):
        lease, _ = begun(house, job_id)
        with house.database.writing() as session:
            runs.wait(session, lease, "no machine is to be had", house.settings)
    assert row(house, job_id).attempt == 0
    assert events(house, job_id, "waiting") == [{"reason": "no machine is to be had"}]
    with house.database.writing() as session:
        assert runs.wake(session, house.settings) > 0
        assert runs.wake(session, house.settings) == 0  # it is due already
    with house.database.writing() as session:
        session.execute(sa.update(HOLD).values(expires_at=utcnow()))
    lease, _ = begun(house, job_id)
    with house.database.writing() as session:
        runs.wait(session, lease, "no machine is to be had", house.settings)
    assert (row(house, job_id).status, row(house, job_id).failure_code) == ("failed", "timeout")
    assert books(house)["available"] == 1000


def test_a_submitted_job_is_looked_after_until_polls_no_longer_come(house: House, job_id: str) -> None:
    submitted(house, job_id)

    def nobody_at_work() -> bool:
        with house.database.writing() as session:
            session.execute(sa.update(Job).values(next_look_at=utcnow() - timedelta(seconds=1)))
        return sweeps.repair_jobs(house) == 1

    assert not nobody_at_work()
    age(house, submitted_at=5000, looked_at=10)
    assert not nobody_at_work()
    age(house, looked_at=5000)
    assert nobody_at_work()
    _, run = begun(house, job_id)
    assert run.state == RunState.SUBMITTED  # and the worker finds that there is nothing to submit
    with house.database.writing() as session:
        session.execute(sa.delete(RemoteRun))
        session.execute(sa.update(Job).values(lease_until=None))
    assert nobody_at_work()


def test_a_submission_overtaken_by_the_owner_is_cleared_again(house: House, job_id: str) -> None:
    lease, run = begun(house, job_id)
    service.cancel(house, job_id)
    with house.database.writing() as session:
        assert runs.end_those_of_final_jobs(session, job_id) == 1
        runs.cleared(session, newest(house, job_id), house.settings, gone=False)
    assert newest(house, job_id).cleared_at is None  # its submission may still be under way
    age(house, ended_at=100)
    with house.database.writing() as session:
        runs.cleared(session, newest(house, job_id), house.settings, gone=False)
    assert newest(house, job_id).cleared_at is not None
    with pytest.raises(LeaseLost), house.database.writing() as session:
        runs.submitted(session, lease, run, "uuid-1", house.settings)
    with house.database.writing() as session:
        runs.submitted_in_vain(session, run)
    assert newest(house, job_id).cleared_at is None


def test_a_cancelled_job_ends_its_run_whoever_looks(house: House, job_id: str) -> None:
    submitted(house, job_id)
    poll = taken(house)
    service.cancel(house, job_id)
    assert see(house, poll, seen_as(status="completed", step=100)) == "completed"  # it was, but nobody needs it
    assert row(house, job_id).status == "cancelled"
    with house.database.writing() as session:
        assert runs.end_those_of_final_jobs(session) == 1
        assert [run.attempt for run in runs.uncleared(session, job_id)] == [1]


def test_who_trains_is_the_requests_choice_then_the_familys(house: House) -> None:
    default = House(house.settings.model_copy(update={"backends": {"sd15": "ai-toolkit"}}))
    assert service.submit(default, request(default))["spec"]["backend"] == "ai-toolkit"
    assert service.submit(default, request(default, backend="local"))["spec"]["backend"] == "local"
    assert service.submit(house, request(house))["spec"]["backend"] == "local"
    default.database.close()


def test_what_a_remote_server_cannot_do_is_refused_before_anything_is_held(house: House, tmp_path: Path) -> None:
    def refused(**changed: Any) -> dict[str, str]:
        other = House(house.settings.model_copy(update=changed.pop("settings", {})))
        with pytest.raises(SpecInvalid) as caught:
            service.submit(other, {**request(house), **REQUEST, "backend": "ai-toolkit", **changed})
        other.database.close()
        return caught.value.faults

    assert "IMPRINT_AI_TOOLKIT_URL" in refused(settings={"ai_toolkit_url": None})["backend"]
    folder = {"base_model_roots": [tmp_path]}
    assert set(refused(settings=folder, base_model=str(tmp_path / "mine"), family="sd15")) == {"base_model"}
    assert set(refused(base_model="z-image-turbo", alpha=8, rank=16)) == {"alpha"}
    assert books(house)["held"] == 0


def test_a_failed_collection_costs_the_run_not_the_job(house: House, job_id: str) -> None:
    submitted(house, job_id)
    see(house, taken(house), seen_as(status="completed", step=100))
    _, run = begun(house, job_id)
    give_up = partial(runs.give_up, run=run, error=BackendFailed("not whole"), settings=house.settings)
    with house.database.writing() as session:
        assert give_up(session)
        assert not give_up(session)
    _, again = begun(house, job_id)
    assert (again.attempt, again.state) == (2, RunState.SUBMITTING)
