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
from jobs import service
from jobs.lifecycle import sweeps
from jobs.lifecycle.leases import Lease
from jobs.remote import runs, waiting_jobs
from jobs.remote.poll_results import LOST, PolledRun, record_result
from jobs.services import Services
from jobs.stages.stage_runner import claim
from storage.tables.jobs import Job, Stage
from storage.tables.remote import RemoteRun, RunState
from tests.contract.jobs import REQUEST, balances, events, messages, put_at, request, row
from training.backends.ai_toolkit.work import PollResult

SEEN = PollResult(
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
def job_id(services: Services) -> str:
    found: str = service.submit(services, request(services, backend="ai-toolkit")).job_id
    put_at(services, found, Stage.TRAIN, total_steps=100)
    return found


def newest(services: Services, job_id: str) -> RemoteRun:
    with services.database.reading() as session:
        found = runs.newest(session, job_id)
    assert found is not None
    return found


def begun(services: Services, job_id: str) -> tuple[Lease, RemoteRun]:
    """A worker has the job, and its run has a name."""
    with services.database.writing() as session:
        session.execute(sa.update(Job).where(col(Job.id) == job_id).values(next_look_at=utcnow()))
    lease, _ = claim(services, job_id, Stage.TRAIN)
    with services.database.writing() as session:
        run = runs.get_or_create(session, lease, services.settings)
    return lease, run


def submitted(services: Services, job_id: str) -> RemoteRun:
    lease, run = begun(services, job_id)
    with services.database.writing() as session:
        runs.record_submitted(session, lease, run, "uuid-1", services.settings)
    return newest(services, job_id)


def taken(services: Services) -> RemoteRun:
    """The one run, taken by a poll after the last one had its time."""
    with services.database.writing() as session:
        session.execute(sa.update(RemoteRun).values(looked_at=None))
        [run] = runs.claim_submitted(session, services.settings)
    return run


def see(services: Services, run: RemoteRun, result: PollResult | None = None, **how: Any) -> str:
    with services.database.writing() as session:
        return record_result(session, PolledRun(run, result, **how), services.settings)


def seen_as(**changed: Any) -> PollResult:
    return PollResult(**{**vars(SEEN), **changed})


def age(services: Services, **ages_s: float) -> None:
    """Put times of the runs into the past."""
    with services.database.writing() as session:
        past = {name: utcnow() - timedelta(seconds=seconds) for name, seconds in ages_s.items()}
        session.execute(sa.update(RemoteRun).values(**past))


def test_a_run_goes_from_submission_to_collection(services: Services, job_id: str) -> None:
    lease, run = begun(services, job_id)
    assert (run.attempt, run.state, run.name) == (1, RunState.SUBMITTING, f"imprint_{job_id}_1")
    with services.database.writing() as session:
        runs.record_submitted(session, lease, run, "uuid-1", services.settings)
    with pytest.raises(LeaseLost), services.database.writing() as session:
        lease.renew(session, 30)  # a heartbeat that was under way
    assert (row(services, job_id).lease_until, row(services, job_id).attempt) == (None, 0)

    assert see(services, taken(services), SEEN) == "recorded"
    job = row(services, job_id)
    assert (job.step, job.loss, job.seconds_left, job.seconds_per_step) == (40, 0.5, 6.0, 0.1)
    assert events(services, job_id, "progress") == [{"step": 40, "total": 100, "loss": 0.5, "seconds_left": 6.0}]
    assert newest(services, job_id).started_at is not None

    launches = messages(services, job_id).count("launch")
    assert see(services, taken(services), seen_as(status="completed", step=100, loss=None)) == "completed"
    assert messages(services, job_id).count("launch") == launches + 1
    assert (row(services, job_id).step, row(services, job_id).train_seconds > 0) == (100, True)

    _, again = begun(services, job_id)
    assert (again.attempt, again.state, again.remote_id) == (1, RunState.COMPLETED, "uuid-1")


def test_only_the_poll_that_took_a_run_last_writes_what_it_saw(services: Services, job_id: str) -> None:
    submitted(services, job_id)
    with services.database.writing() as session:
        [slow] = runs.claim_submitted(session, services.settings)
        assert runs.claim_submitted(session, services.settings) == []  # so soon nobody else needs to look
    quick = taken(services)
    assert see(services, quick, seen_as(status="completed", step=100)) == "completed"
    for late in (SEEN, seen_as(status="completed"), seen_as(status="failed"), None):
        assert see(services, slow, late) == "overtaken"
        assert see(services, quick, late) == "overtaken"
    assert newest(services, job_id).state == RunState.COMPLETED
    assert messages(services, job_id).count("launch") == 2
    assert row(services, job_id).step == 100


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (lambda services, run: see(services, run, seen_as(status="failed", info="boom")), "backend_failed"),
        (lambda services, run: see(services, run, seen_as(status="stopped")), "backend_failed"),
        (lambda services, run: see(services, run), "backend_unreachable"),
        (lambda services, run: see(services, run, error=BackendUnreachable("gone", LOST)), "backend_unreachable"),
    ],
    ids=["error", "stopped", "unknown", "pod gone"],
)
def test_three_attempts_then_the_hold_is_released(
    services: Services, job_id: str, last: Callable[[Services, RemoteRun], str], code: str
) -> None:
    held = balances(services)["held"]
    for attempt in (1, 2, 3):
        assert submitted(services, job_id).name == f"imprint_{job_id}_{attempt}"
        assert last(services, taken(services)) == "given up"
    job = row(services, job_id)
    assert (job.status, job.failure_code) == ("failed", code)
    assert balances(services) == {"held": 0, "spent": 0, "available": 1000}
    assert held > 0
    assert [event["attempt"] for event in events(services, job_id, "retry")] == [1, 2]
    with services.database.reading() as session:
        assert [run.attempt for run in runs.uncleared(session)] == [1, 2, 3]


def test_what_will_not_get_better_is_not_tried_again(services: Services, job_id: str) -> None:
    submitted(services, job_id)
    gated = seen_as(status="failed", info="Cannot access gated repo for url https://huggingface.co/x.")
    assert see(services, taken(services), gated) == "given up"
    job = row(services, job_id)
    assert (job.status, job.failure_code) == ("failed", "base_model_unavailable")
    assert "Cannot access gated repo" in (job.failure_message or "")
    assert balances(services)["held"] == 0


def test_too_little_memory_is_tried_once_more(services: Services, job_id: str) -> None:
    full = seen_as(status="failed", info="CUDA out of memory. Tried …")
    submitted(services, job_id)
    assert see(services, taken(services), full) == "given up"
    assert row(services, job_id).status == "training"
    assert "Tried" in (newest(services, job_id).reason or "")  # for operators; not for the owner
    assert "Tried" not in (row(services, job_id).waiting_note or "")
    submitted(services, job_id)
    assert see(services, taken(services), full) == "given up"
    assert (row(services, job_id).status, row(services, job_id).failure_code) == ("failed", "out_of_memory")


def test_memory_that_a_stopped_training_may_still_hold_is_tried_again(services: Services, job_id: str) -> None:
    other = service.submit(services, request(services, backend="ai-toolkit", idempotency_key="2")).job_id
    put_at(services, other, Stage.TRAIN, total_steps=100)
    submitted(services, other)
    service.cancel(services, other)
    with services.database.writing() as session:
        assert runs.end_runs_of_final_jobs(session, other) == 1
    for attempt in (1, 2, 3):
        assert submitted(services, job_id).attempt == attempt
        with services.database.writing() as session:
            [run] = runs.claim_submitted(session, services.settings)
        assert see(services, run, seen_as(status="failed", info="CUDA out of memory")) == "given up"
        assert row(services, job_id).status == ("failed" if attempt == 3 else "training")


def test_a_stall_is_no_step_and_no_log_for_long(services: Services, job_id: str) -> None:
    submitted(services, job_id)
    assert see(services, taken(services), SEEN) == "recorded"
    age(services, moved_at=150, submitted_at=200, started_at=200)
    assert see(services, taken(services), seen_as(grew=True, log_offset=950)) == "recorded"
    assert see(services, taken(services), seen_as(log_offset=950)) == "recorded"  # since a moment only
    age(services, moved_at=150)
    assert see(services, taken(services), seen_as(step=41)) == "recorded"
    age(services, moved_at=150)
    assert see(services, taken(services), seen_as(step=41)) == "given up"
    assert row(services, job_id).status == "training"


def test_in_the_queue_only_a_server_that_does_nothing_is_a_stall(services: Services, job_id: str) -> None:
    submitted(services, job_id)
    queued = seen_as(status="queued", step=0, loss=None, info="Job queued")
    age(services, moved_at=150, submitted_at=5000)
    assert see(services, taken(services), queued, busy=True) == "recorded"
    age(services, moved_at=150)
    assert see(services, taken(services), queued, busy=False) == "given up"


def test_a_training_has_a_time_limit_from_its_start(services: Services, job_id: str) -> None:
    submitted(services, job_id)
    see(services, taken(services), SEEN)
    age(services, started_at=1001)
    assert see(services, taken(services), seen_as(step=50)) == "given up"
    assert (row(services, job_id).status, row(services, job_id).failure_code) == ("failed", "timeout")


def test_a_server_is_lost_after_so_many_polls_in_a_row(services: Services, job_id: str) -> None:
    submitted(services, job_id)
    silent = BackendUnreachable("no answer")
    assert [see(services, taken(services), error=silent) for _ in range(2)] == ["missed"] * 2
    assert see(services, taken(services), SEEN) == "recorded"
    assert [see(services, taken(services), error=silent) for _ in range(3)] == ["missed", "missed", "out of sight"]
    job = row(services, job_id)
    assert (job.status, job.step, job.waiting_note) == ("training", 40, "the server did not answer 3 times in a row")


def test_a_training_that_outlived_an_outage_goes_on(services: Services, job_id: str) -> None:
    submitted(services, job_id)
    assert see(services, taken(services), SEEN) == "recorded"
    with services.database.writing() as session:
        assert runs.look_again(session, newest(services, job_id), BackendUnreachable("away"), services.settings)
        assert runs.uncleared(session, job_id) == []  # nothing deletes it from the server meanwhile
    run = submitted(services, job_id)  # a worker found it there: the same name, the same id
    assert (run.attempt, run.state, run.step, run.log_offset) == (1, RunState.SUBMITTED, 40, 900)
    assert see(services, taken(services), seen_as(status="completed", step=100)) == "completed"
    assert events(services, job_id, "retry") == []
    with services.database.writing() as session:  # a later outage, after which the server has lost it
        session.execute(sa.update(RemoteRun).values(state=RunState.SUBMITTING))
    lease, run = begun(services, job_id)
    with services.database.writing() as session:
        runs.record_submitted(session, lease, run, "uuid-2", services.settings)
    assert (newest(services, job_id).step, newest(services, job_id).log_offset) == (0, 0)


def test_waiting_for_a_machine_is_no_attempt_and_ends_with_the_hold(services: Services, job_id: str) -> None:
    for _ in range(5):
        lease, _ = begun(services, job_id)
        with services.database.writing() as session:
            waiting_jobs.wait_for_server(session, lease, "no machine is to be had", services.settings)
    assert row(services, job_id).attempt == 0
    assert events(services, job_id, "waiting") == [{"reason": "no machine is to be had"}]
    with services.database.writing() as session:
        assert waiting_jobs.wake(session, services.settings) > 0
        assert waiting_jobs.wake(session, services.settings) == 0  # it is due already
    with services.database.writing() as session:
        session.execute(sa.update(HOLD).values(expires_at=utcnow()))
    lease, _ = begun(services, job_id)
    with services.database.writing() as session:
        waiting_jobs.wait_for_server(session, lease, "no machine is to be had", services.settings)
    assert (row(services, job_id).status, row(services, job_id).failure_code) == ("failed", "timeout")
    assert balances(services)["available"] == 1000


def test_a_submitted_job_is_looked_after_until_polls_no_longer_come(services: Services, job_id: str) -> None:
    submitted(services, job_id)

    def nobody_at_work() -> bool:
        with services.database.writing() as session:
            session.execute(sa.update(Job).values(next_look_at=utcnow() - timedelta(seconds=1)))
        return sweeps.repair_jobs(services) == 1

    assert not nobody_at_work()
    age(services, submitted_at=5000, looked_at=10)
    assert not nobody_at_work()
    age(services, looked_at=5000)
    assert nobody_at_work()
    _, run = begun(services, job_id)
    assert run.state == RunState.SUBMITTED  # and the worker finds that there is nothing to submit
    with services.database.writing() as session:
        session.execute(sa.delete(RemoteRun))
        session.execute(sa.update(Job).values(lease_until=None))
    assert nobody_at_work()


def test_a_submission_overtaken_by_the_owner_is_cleared_again(services: Services, job_id: str) -> None:
    lease, run = begun(services, job_id)
    service.cancel(services, job_id)
    with services.database.writing() as session:
        assert runs.end_runs_of_final_jobs(session, job_id) == 1
        runs.record_cleared(session, newest(services, job_id), services.settings, gone=False)
    assert newest(services, job_id).cleared_at is None  # its submission may still be under way
    age(services, ended_at=100)
    with services.database.writing() as session:
        runs.record_cleared(session, newest(services, job_id), services.settings, gone=False)
    assert newest(services, job_id).cleared_at is not None
    with pytest.raises(LeaseLost), services.database.writing() as session:
        runs.record_submitted(session, lease, run, "uuid-1", services.settings)
    with services.database.writing() as session:
        runs.record_late_submission(session, run)
    assert newest(services, job_id).cleared_at is None


def test_a_cancelled_job_ends_its_run_whichever_process_polls(services: Services, job_id: str) -> None:
    submitted(services, job_id)
    poll = taken(services)
    service.cancel(services, job_id)
    assert see(services, poll, seen_as(status="completed", step=100)) == "completed"  # it was, but nobody needs it
    assert row(services, job_id).status == "cancelled"
    with services.database.writing() as session:
        assert runs.end_runs_of_final_jobs(session) == 1
        assert [run.attempt for run in runs.uncleared(session, job_id)] == [1]


def test_who_trains_is_the_requests_choice_then_the_familys(services: Services) -> None:
    default = Services(services.settings.model_copy(update={"backends": {"sd15": "ai-toolkit"}}))
    assert service.submit(default, request(default)).spec.backend == "ai-toolkit"
    assert service.submit(default, request(default, backend="local")).spec.backend == "local"
    assert service.submit(services, request(services)).spec.backend == "local"
    default.database.close()


def test_what_a_remote_server_cannot_do_is_refused_before_anything_is_held(services: Services, tmp_path: Path) -> None:
    def refused(**changed: Any) -> dict[str, str]:
        other = Services(services.settings.model_copy(update=changed.pop("settings", {})))
        with pytest.raises(SpecInvalid) as caught:
            service.submit(other, {**request(services), **REQUEST, "backend": "ai-toolkit", **changed})
        other.database.close()
        return caught.value.faults

    assert "IMPRINT_AI_TOOLKIT_URL" in refused(settings={"ai_toolkit_url": None})["backend"]
    folder = {"base_model_roots": [tmp_path]}
    assert set(refused(settings=folder, base_model=str(tmp_path / "mine"), family="sd15")) == {"base_model"}
    assert set(refused(base_model="z-image-turbo", alpha=8, rank=16)) == {"alpha"}
    assert balances(services)["held"] == 0


def test_a_failed_collection_costs_the_run_not_the_job(services: Services, job_id: str) -> None:
    submitted(services, job_id)
    see(services, taken(services), seen_as(status="completed", step=100))
    _, run = begun(services, job_id)
    give_up = partial(runs.give_up, run=run, error=BackendFailed("not whole"), settings=services.settings)
    with services.database.writing() as session:
        assert give_up(session)
        assert not give_up(session)
    _, again = begun(services, job_id)
    assert (again.attempt, again.state) == (2, RunState.SUBMITTING)
