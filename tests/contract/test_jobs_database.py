"""The life of a job in both databases: schema, submit, leases, moves and repair, raced by processes, with the money.

No Celery here: what the tasks call is called, with services over a temporary home.
"""

import importlib
import multiprocessing
import pkgutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlmodel import Session, SQLModel, col, select

import credits.tables
import notifications.tables
import storage.tables
from core.clock import utcnow
from core.errors import (
    IllegalMove,
    ImageUnreachable,
    InsufficientCredits,
    KeyReused,
    LeaseLost,
    LossNotFinite,
    NotFound,
    OutOfMemory,
    SpecInvalid,
)
from core.settings import Settings
from credits import ledger
from jobs import service
from jobs.lifecycle import repair, retries, sweeps, transitions
from jobs.lifecycle.lease_keeper import HeldLease, LeaseKeeper
from jobs.lifecycle.leases import Lease, claim_picture, claim_stage
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import intake
from jobs.stages.stage_runner import NothingToDo, claim, holding_lease, remaining_work
from jobs.turns import RetryLater
from jobs.view import JobView
from notifications.tables import OutboxMessage
from storage.database import Database
from storage.tables.jobs import ACTIVE, Job, JobPicture, PictureState, Stage, Status
from tests.contract.jobs import GRANTED, balances, events, messages, picture, put_at, request, row
from tests.contract.processes import Work, at_once
from tests.servers.databases import BOTH
from tests.servers.postgres import new_database

pytestmark = pytest.mark.both_databases

RACERS = 8
_FORK = multiprocessing.get_context("fork")


def homes_at_once(settings: Settings, works: Sequence[Callable[[Services], Any]]) -> list[Any]:
    """Do each work in a process with services of its own, all starting together; what each gave, or its error."""
    together = _FORK.Barrier(len(works))
    children = []
    for work in works:
        ours, theirs = _FORK.Pipe(duplex=False)
        child = _FORK.Process(target=_at_home, args=(settings, work, together, theirs))
        child.start()
        theirs.close()
        children.append((child, ours))
    answers = []
    for child, ours in children:
        assert ours.poll(60), "a child did not answer"
        answers.append(ours.recv())
        child.join(60)
    return answers


def _at_home(settings: Settings, work: Callable[[Services], Any], together: Barrier, answer: Connection) -> None:
    together.wait(60)
    try:
        answer.send(work(Services(settings)))
    except Exception as error:  # noqa: BLE001 - whatever it is, the test that waits for it shall see it
        answer.send(error)


# ---- schema ---------------------------------------------------------------------------------------------------


def test_migrations_make_what_all_the_classes_say(database: Database) -> None:
    of_storage = [
        importlib.import_module(f"storage.tables.{found.name}")
        for found in pkgutil.iter_modules(storage.tables.__path__)
    ]
    tables = {
        table.__tablename__
        for module in (credits.tables, notifications.tables, *of_storage)
        for table in vars(module).values()
        if isinstance(table, type) and issubclass(table, SQLModel) and table is not SQLModel
    }
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, SQLModel.metadata) == []
        assert set(sa.inspect(connection).get_table_names()) == tables | {"alembic_version"}


@pytest.mark.parametrize("kind", BOTH)
def test_eight_processes_migrate_an_empty_database_together(
    kind: str, pytestconfig: pytest.Config, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kind == "postgresql":
        server, _ = request.getfixturevalue("postgres")
        address = new_database(server)
    else:
        address = f"sqlite:///{tmp_path}/new/imprint.db"
    settings = Settings(_env_file=None, home=tmp_path, database_url=address)
    assert homes_at_once(settings, [_migrate] * RACERS) == [None] * RACERS
    database = Database(address)
    assert database.is_at()
    database.close()


def _migrate(services: Services) -> None:
    services.database.migrate()


def test_a_new_file_that_another_is_writing_is_waited_for(tmp_path: Path) -> None:
    # One that no process has given its write-ahead log yet: that change is what SQLite's own timeout does not cover.
    other = sqlite3.connect(tmp_path / "new.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    database = Database(f"sqlite:///{tmp_path}/new.db")
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(database.migrate)
        with pytest.raises(TimeoutError):
            opened.exception(0.3)
        other.execute("CREATE TABLE theirs (id INTEGER)")
        other.execute("COMMIT")
        opened.result(60)
    other.close()
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert {"theirs", "training_job"} <= set(sa.inspect(connection).get_table_names())
    database.close()


@pytest.mark.parametrize(
    ("table", "change"), [("training_job", "status='lost'"), ("training_job", "stage='x'"), ("job_picture", "state=''")]
)
def test_the_database_refuses_words_that_there_are_not(
    services: Services, job_id: str, table: str, change: str
) -> None:
    with pytest.raises(sa.exc.IntegrityError), services.database.writing() as session:
        session.execute(sa.text(f"UPDATE {table} SET {change}"))  # noqa: S608 - ours


# ---- submit ---------------------------------------------------------------------------------------------------


def test_submit_writes_job_hold_pictures_and_first_message_together(services: Services) -> None:
    view = service.submit(services, request(services, epochs=10))
    assert (view.status, view.stage, view.total_steps) == ("pending", "preprocess", 50)
    assert [one.state for one in view.pictures] == ["waiting"] * 5
    assert view.credits.to_dict() == {"held": 5, "charged": 0, "refunded": 0}
    assert messages(services, view.job_id) == ["launch"]
    assert balances(services) == {"held": 5, "spent": 0, "available": GRANTED - 5}


def test_insufficient_credits_store_nothing_and_the_key_may_be_used_again(services: Services) -> None:
    asked = request(services, epochs=500, resolution=2048, idempotency_key="k")
    with pytest.raises(InsufficientCredits) as caught:
        service.submit(services, asked)
    assert caught.value.details == {"needed": 4000, "available": GRANTED}
    assert service.jobs(services) == []
    with services.database.reading() as session:
        assert session.exec(select(JobPicture)).all() == []
        assert session.exec(select(OutboxMessage)).all() == []
    accounts.grant(services, "ada", 5000)
    assert service.submit(services, asked).credits.held == 4000


def test_an_unknown_or_foreign_picture_is_named_and_nothing_is_stored(services: Services) -> None:
    foreign = intake.store_picture(services, "bob", "cat", b"bob's own")
    asked = request(services)
    asked["images"] = [*asked["images"], "pic_unknown", foreign]
    with pytest.raises(SpecInvalid) as caught:
        service.submit(services, asked)
    assert caught.value.faults.keys() == {"images.5", "images.6"}
    assert service.jobs(services) == []
    assert balances(services)["held"] == 0


def test_a_key_with_another_request_is_an_error_and_with_another_owner_another_job(services: Services) -> None:
    first = service.submit(services, request(services, idempotency_key="k"))
    with pytest.raises(KeyReused) as caught:
        service.submit(services, request(services, idempotency_key="k", rank=8))
    assert caught.value.details == {"job_id": first.job_id}
    accounts.grant(services, "bob", 1000)
    images = [intake.store_picture(services, "bob", "dog", b"%d" % number) for number in range(5)]
    other = service.submit(services, request(services, idempotency_key="k", owner_id="bob", images=images))
    assert other.job_id != first.job_id


@pytest.mark.parametrize("granted", [GRANTED, 1], ids=["credits for all", "credits for one"])
def test_eight_processes_with_one_key_get_one_job(services: Services, settings: Settings, granted: int) -> None:
    """Also when there are credits for one job only: the others get that one, not a refusal."""
    if spare := GRANTED - granted:
        service.submit(services, request(services, max_steps=10 * spare))
    asked = request(services, idempotency_key="k", max_steps=1)
    answers = homes_at_once(settings, [partial(service.submit, arguments=asked)] * RACERS)
    assert {answer.job_id if isinstance(answer, JobView) else repr(answer) for answer in answers} == {
        service.jobs(services)[0].job_id
    }
    assert len(service.jobs(services)) == 1 + bool(spare)
    assert balances(services)["held"] == 1 + spare
    assert messages(services, answers[0].job_id) == ["launch"]


def test_eight_processes_with_credits_for_three_get_three_jobs(services: Services, settings: Settings) -> None:
    asked = [request(services, resolution=512, max_steps=3000, seed=seed) for seed in range(RACERS)]
    answers = homes_at_once(settings, [partial(service.submit, arguments=one) for one in asked])
    assert Counter(type(answer) for answer in answers) == {JobView: 3, InsufficientCredits: RACERS - 3}
    assert balances(services) == {"held": 900, "spent": 0, "available": 100}


# ---- leases ---------------------------------------------------------------------------------------------------


def claimed(services: Services, job_id: str, stage: Stage = Stage.TRAIN, lease_s: float = 30) -> Lease | None:
    with services.database.writing() as session:
        found = claim_stage(session, job_id, stage, "tests/1", lease_s)
        return found[0] if found else None


def lease_of(services: Services, job_id: str, stage: Stage = Stage.TRAIN, lease_s: float = 30) -> Lease:
    lease = claimed(services, job_id, stage, lease_s)
    assert lease is not None
    return lease


def test_a_second_claim_is_refused_while_the_first_holds(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    first = lease_of(services, job_id)
    assert (first.token, first.attempt) == (1, 1)
    assert claimed(services, job_id) is None
    found = row(services, job_id)
    assert (found.lease_holder, found.attempt) == ("tests/1", 1)


def test_of_eight_processes_one_claims(services: Services, job_id: str, address: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    works: list[Work] = [partial(_claim, job_id=job_id, stage=Stage.TRAIN)] * RACERS
    assert Counter(at_once(address, works)) == {1: 1, None: RACERS - 1}


def _claim(session: Session, job_id: str, stage: Stage) -> int | None:
    found = claim_stage(session, job_id, stage, "racer", 30)
    return found[0].token if found else None


def test_an_expired_claim_is_taken_over_and_its_holder_writes_nothing_more(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    stale = lease_of(services, job_id, lease_s=-1)
    fresh = lease_of(services, job_id)
    assert (fresh.token, fresh.attempt) == (stale.token + 1, 2)
    for write in (
        lambda session: stale.write(session, step=99),
        lambda session: stale.renew(session, 30),
        lambda session: transitions.advance(session, stale, services.settings, step=99),
        lambda session: retries.postpone(session, stale, ImageUnreachable("x"), services.settings),
        lambda session: retries.hand_over(session, stale, services.settings, "stop"),
    ):
        with pytest.raises(LeaseLost), services.database.writing() as session:
            write(session)
    with services.database.writing() as session:
        assert not stale.is_held(session)
        assert not transitions.fail_leased(session, stale, OutOfMemory("too late"))
    found = row(services, job_id)
    assert (found.step, found.stage, found.status, found.lease_token) == (0, "train", "training", fresh.token)
    assert messages(services, job_id) == ["launch"]


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_the_end_of_a_job_ends_its_lease(services: Services, job_id: str, end: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    lease = lease_of(services, job_id)
    with services.database.writing() as session:
        if end == "cancel":
            assert transitions.cancel(session, job_id, services.settings)
        else:
            assert transitions.fail(session, job_id, OutOfMemory("x"))
    with pytest.raises(LeaseLost), services.database.writing() as session:
        lease.write(session, step=5)
    assert claimed(services, job_id) is None


def test_only_the_stage_where_the_job_stands_can_be_claimed(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.UPLOAD)
    assert [claimed(services, job_id, stage) for stage in (Stage.DATASET, Stage.TRAIN, Stage.SETTLE)] == [None] * 3
    lease = lease_of(services, job_id, Stage.UPLOAD)
    with services.database.writing() as session:
        transitions.advance(session, lease, services.settings)
    assert claimed(services, job_id, Stage.UPLOAD) is None
    found = row(services, job_id)
    assert (found.stage, found.attempt, found.lease_until) == ("settle", 0, None)


def test_dataset_waits_for_every_picture(services: Services, job_id: str) -> None:
    assert claimed(services, job_id, Stage.DATASET) is None
    for position in range(5):
        with services.database.writing() as session:
            found = claim_picture(session, job_id, position, "tests/1", 30)
            assert found is not None
            assert claim_picture(session, job_id, position, "tests/2", 30) is None
            transitions.record_picture(session, found[0], PictureState.GOOD)
        assert (claimed(services, job_id, Stage.DATASET) is not None) == (position == 4)
    assert row(services, job_id).stage == "dataset"


def test_a_picture_is_claimed_by_one_of_eight_and_a_stale_holder_records_nothing(
    services: Services, job_id: str, address: str
) -> None:
    works: list[Work] = [partial(_claim_first_picture, job_id=job_id)] * RACERS
    assert Counter(at_once(address, works)) == {1: 1, None: RACERS - 1}
    with services.database.writing() as session:
        session.execute(sa.update(JobPicture).values(lease_until=utcnow() - timedelta(seconds=1)))
        assert claim_picture(session, job_id, 0, "fresh", 30) is not None
    stale = Lease(job_id, Stage.PREPROCESS, 1, 1, position=0)
    with pytest.raises(LeaseLost), services.database.writing() as session:
        transitions.record_picture(session, stale, PictureState.BAD)
    assert picture(services, job_id).state == "waiting"


def _claim_first_picture(session: Session, job_id: str) -> int | None:
    found = claim_picture(session, job_id, 0, "racer", 30)
    return found[0].token if found else None


def test_a_final_jobs_pictures_are_nobodys(services: Services, job_id: str) -> None:
    with services.database.writing() as session:
        transitions.cancel(session, job_id, services.settings)
        assert claim_picture(session, job_id, 0, "late", 30) is None


def test_a_heartbeat_keeps_a_lease_beyond_its_time(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    lease = lease_of(services, job_id, lease_s=3)  # on a busy machine, a thread may stand still for a second
    first = row(services, job_id).lease_until
    assert first is not None
    with LeaseKeeper(services.database, 3).keeping(lease) as beat:
        wait(lambda: utcnow() > first)
        assert claimed(services, job_id) is None
        assert not beat.lost.is_set()
    wait(lambda: claimed(services, job_id) is not None)


def test_a_heartbeat_says_when_the_lease_is_somebody_elses(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    lease = lease_of(services, job_id, lease_s=-1)
    lease_of(services, job_id)
    with LeaseKeeper(services.database, 0.3).keeping(lease) as beat:
        assert beat.lost.wait(60)


def test_one_heart_keeps_many_leases_and_goes_on_when_one_is_lost(services: Services, job_id: str) -> None:
    lease_keeper = LeaseKeeper(services.database, 0.6)
    other = service.submit(services, request(services, seed=2)).job_id
    for one in (job_id, other):
        put_at(services, one, Stage.TRAIN)
    lost, kept = lease_of(services, job_id, lease_s=-1), lease_of(services, other, lease_s=0.6)
    lease_of(services, job_id)
    with lease_keeper.keeping(lost) as beat, lease_keeper.keeping(kept):
        assert beat.lost.wait(60)
        seen = row(services, other).lease_until
        assert seen is not None
        wait(lambda: (row(services, other).lease_until or seen) > seen + timedelta(seconds=0.6))


class BrokenLease(Lease):
    """A defect: every renewal raises."""

    def renew(self, session: Session, lease_s: float) -> None:
        raise RuntimeError("as the test wants it")


def three_leases(services: Services, job_id: str) -> list[Lease]:
    jobs = [job_id, *(service.submit(services, request(services, seed=seed)).job_id for seed in (2, 3))]
    for one in jobs:
        put_at(services, one, Stage.TRAIN)
    return [lease_of(services, one, lease_s=0.6) for one in jobs]


def test_a_lease_that_cannot_be_renewed_keeps_no_other_from_it(services: Services, job_id: str) -> None:
    keeper = LeaseKeeper(services.database, 0.6)
    broken, *good = three_leases(services, job_id)
    before = [row(services, lease.job_id).lease_until for lease in good]
    with keeper.keeping(BrokenLease(**vars(broken))) as held, keeper.keeping(good[0]), keeper.keeping(good[1]):
        for lease, until in zip(good, before, strict=True):
            wait(lambda lease=lease, until=until: row(services, lease.job_id).lease_until > until)  # type: ignore[misc]
        assert not held.lost.is_set()


def test_sqlite_renews_all_leases_of_a_process_in_one_transaction(services: Services, job_id: str) -> None:
    """It writes to the disk at each commit, and everybody's writes wait for that."""
    keeper, leases, commits = LeaseKeeper(services.database, 0.6), three_leases(services, job_id), list[object]()
    held = [HeldLease(lease) for lease in leases]
    keeper._all_held.update(held)
    sa.event.listen(services.database.engine, "commit", commits.append)
    first = [row(services, lease.job_id).lease_until for lease in leases]
    assert keeper._renew_all(held)
    assert len(commits) == (1 if services.database.is_sqlite else 3)
    assert all(row(services, lease.job_id).lease_until != until for lease, until in zip(leases, first, strict=True))


class SlowLease(Lease):
    """A renewal that is on its way until the test lets it go."""

    on_its_way, unclaim = threading.Event(), threading.Event()

    def renew(self, session: Session, lease_s: float) -> None:
        self.on_its_way.set()
        self.unclaim.wait(60)
        super().renew(session, lease_s)


def test_a_renewal_on_its_way_does_not_bring_back_a_lease_that_was_given_back(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    lease = SlowLease(**vars(lease_of(services, job_id)))
    lease.on_its_way.clear()
    lease.unclaim.clear()

    def step() -> None:
        with LeaseKeeper(services.database, 0.3).keeping(lease):
            lease.on_its_way.wait(60)
        with services.database.writing() as session:
            retries.postpone(session, lease, ImageUnreachable("not just now"), services.settings)

    ended = threading.Thread(target=step)
    ended.start()
    assert lease.on_its_way.wait(60)
    ended.join(0.5)
    lease.unclaim.set()
    ended.join(60)
    assert lease_of(services, job_id).attempt == 2


def wait(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- the shell ------------------------------------------------------------------------------------------------


def test_a_job_whose_pictures_were_all_prepared_before_begins_with_its_dataset(services: Services, job_id: str) -> None:
    with services.database.writing() as session:
        session.execute(sa.update(JobPicture).values(state=PictureState.GOOD))
    claim(services, job_id, Stage.DATASET)
    assert (row(services, job_id).status, row(services, job_id).started_at is None) == ("training", False)
    assert [content["status"] for content in events(services, job_id, "status")] == ["pending", "training"]
    assert messages(services, job_id) == ["launch", "training.processing"]


def test_a_transient_failure_comes_again_later_each_time_and_then_fails_the_job(
    services: Services, job_id: str
) -> None:
    put_at(services, job_id, Stage.TRAIN)
    delays = []
    for attempt in (1, 2, 3):
        lease, _ = claim(services, job_id, Stage.TRAIN)
        assert lease.attempt == attempt
        with pytest.raises((RetryLater, ImageUnreachable)) as caught, holding_lease(services, lease):
            raise ImageUnreachable("not just now")
        if isinstance(caught.value, RetryLater):
            delays.append(caught.value.delay_s)
    assert 1.5 <= delays[0] <= 2.5 < 3 <= delays[1] <= 5
    view = service.get(services, job_id)
    assert (view.status, view.failure.code) == ("failed", "image_unreachable")
    assert [content["attempt"] for content in events(services, job_id, "retry")] == [1, 2]
    assert balances(services) == {"held": 0, "spent": 0, "available": GRANTED}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LossNotFinite("loss is nan"), "loss_not_finite"),
        (MemoryError(), "out_of_memory"),
        (KeyError("secret detail"), "internal"),
    ],
)
def test_a_final_failure_ends_the_job_at_once(services: Services, job_id: str, error: Exception, code: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    lease, _ = claim(services, job_id, Stage.TRAIN)
    with pytest.raises(Exception), holding_lease(services, lease):  # noqa: B017, PT011 - one of ours, made from it
        raise error
    view = service.get(services, job_id)
    assert (view.status, view.failure.code, view.attempt) == ("failed", code, 1)
    assert "secret detail" not in view.model_dump_json()
    assert balances(services)["held"] == 0


def test_who_lost_the_lease_fails_nobody(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    stale = lease_of(services, job_id, lease_s=-1)
    lease_of(services, job_id)
    for error in (LossNotFinite("nan"), ImageUnreachable("x"), LeaseLost("gone")):
        with pytest.raises(NothingToDo), holding_lease(services, stale):
            raise error
    assert row(services, job_id).status == "training"
    assert balances(services)["held"] == 50


# ---- moves ----------------------------------------------------------------------------------------------------


def test_the_first_sign_of_work_is_told_once_by_eight(services: Services, job_id: str, address: str) -> None:
    assert set(at_once(address, [partial(transitions.begin, job_id=job_id)] * RACERS)) == {None}
    assert events(services, job_id, "status") == [{"status": "pending"}, {"status": "training"}]
    assert messages(services, job_id) == ["launch", "training.processing"]


@pytest.mark.parametrize(
    ("move", "status", "money", "notice"),
    [
        (partial(transitions.fail, error=OutOfMemory("x")), "failed", (0, 0), "training.failed"),
        (transitions.cancel, "cancelled", (0, 12), "training.cancelled"),
        (transitions.settle, "ready", (0, 25), "training.completed"),
    ],
    ids=["fail", "cancel", "settle"],
)
def test_a_final_move_happens_once_under_eight_racers(
    services: Services,
    job_id: str,
    address: str,
    move: Callable[..., bool],
    status: str,
    money: tuple[int, int],
    notice: str,
) -> None:
    put_at(services, job_id, Stage.SETTLE, total_steps=250, step=125)
    more = {} if isinstance(move, partial) else {"settings": services.settings}
    answers = at_once(address, [partial(move, job_id=job_id, **more)] * RACERS)
    assert Counter(answers) == {True: 1, False: RACERS - 1}
    view = service.get(services, job_id)
    assert (view.status, view.credits.charged) == (status, money[1])
    assert balances(services) == {"held": money[0], "spent": money[1], "available": GRANTED - sum(money)}
    assert messages(services, job_id) == ["(launch)", notice, "cleanup"]
    assert len(events(services, job_id, "status")) == 2
    assert view.finished_at is not None


def test_cancel_fail_and_settle_together_end_the_job_in_one_way(services: Services, address: str) -> None:
    """Each round another job; whichever wins, status, money, messages and events agree."""
    charges = {"ready": 50, "failed": 0, "cancelled": 32}
    for round_ in range(6):
        job_id = service.submit(services, request(services, seed=round_)).job_id
        put_at(services, job_id, Stage.SETTLE, step=329)
        before = balances(services)
        works: list[Work] = [
            partial(transitions.cancel, job_id=job_id, settings=services.settings),
            partial(transitions.settle, job_id=job_id, settings=services.settings),
            partial(transitions.fail, job_id=job_id, error=OutOfMemory("x")),
            partial(transitions.settle, job_id=job_id, settings=services.settings),
        ]
        turned = works[round_ % 4 :] + works[: round_ % 4]
        assert Counter(at_once(address, turned)) == {True: 1, False: 3}
        view = service.get(services, job_id)
        spent = view.credits.charged
        assert view.credits.to_dict() == {"held": 0, "charged": charges[view.status], "refunded": 50 - spent}
        assert balances(services) == {
            "held": before["held"] - 50, "spent": before["spent"] + spent, "available": before["available"] + 50 - spent
        }  # fmt: skip
        assert len([name for name in messages(services, job_id) if name.startswith("training.")]) == 1
        assert [content["status"] for content in events(services, job_id, "status")] == ["pending", view.status]


def test_a_final_status_never_changes(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.SETTLE)
    with services.database.writing() as session:
        assert transitions.settle(session, job_id, services.settings)
    before = service.get(services, job_id)
    with services.database.writing() as session:
        assert not transitions.cancel(session, job_id, services.settings)
        assert not transitions.fail(session, job_id, OutOfMemory("x"))
        assert not transitions.settle(session, job_id, services.settings)
        assert not repair.repair_job(session, job_id, services.settings)
        transitions.begin(session, job_id)
    assert service.get(services, job_id) == before
    with pytest.raises(IllegalMove, match="already"):
        service.cancel(services, job_id)


def test_cancelling_twice_is_no_error_and_an_unknown_job_is(services: Services, job_id: str) -> None:
    assert service.cancel(services, job_id) == service.cancel(services, job_id)
    with pytest.raises(NotFound):
        service.cancel(services, "job_nowhere")
    assert balances(services)["held"] == 0


def test_settle_needs_the_stage_before_it(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.UPLOAD)
    with services.database.writing() as session:
        assert not transitions.settle(session, job_id, services.settings)
    assert balances(services)["spent"] == 0


def test_no_more_is_charged_than_was_held(services: Services, job_id: str) -> None:
    """Though prices rose meanwhile."""
    put_at(services, job_id, Stage.SETTLE)
    dearer = services.settings.model_copy(update={"prices": {"sd15": 10_000}})
    with services.database.writing() as session:
        assert transitions.settle(session, job_id, dearer)
    assert balances(services) == {"held": 0, "spent": 50, "available": GRANTED - 50}


def test_a_late_success_after_an_expired_hold_is_delivered_and_charged_nothing(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.SETTLE, lora_key=f"models/{job_id}/lora_weights.safetensors")
    with services.database.writing() as session:
        hold = ledger.hold_of(session, job_id)
        assert hold is not None
        ledger.expire(session, hold.id)
    with services.database.writing() as session:
        assert transitions.settle(session, job_id, services.settings)
    view = service.get(services, job_id)
    assert (view.status, view.credits.charged) == ("ready", 0)
    assert view.lora is not None
    assert len(events(services, job_id, "leak")) == 1
    assert messages(services, job_id) == ["(launch)", "training.completed", "cleanup"]
    assert balances(services) == {"held": 0, "spent": 0, "available": GRANTED}


def test_a_hand_over_costs_no_attempt_and_sends_the_rest(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    with services.database.writing() as session:
        retries.hand_over(session, lease_of_session(session, job_id), services.settings, "stop")
    found = row(services, job_id)
    assert (found.attempt, found.lease_until) == (0, None)
    assert messages(services, job_id) == ["launch", "launch"]
    assert lease_of(services, job_id).attempt == 1


def lease_of_session(session: Session, job_id: str) -> Lease:
    found = claim_stage(session, job_id, Stage.TRAIN, "tests/1", 30)
    assert found is not None
    return found[0]


# ---- repair ---------------------------------------------------------------------------------------------------


def ago(seconds: float) -> datetime:
    return utcnow() - timedelta(seconds=seconds)


def test_a_dead_lease_is_found_and_its_stage_sent_again_with_growing_patience(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    lease_of(services, job_id, lease_s=-1)
    assert sweeps.repair_jobs(services) == 1
    found = row(services, job_id)
    assert (found.lease_until, found.launches, found.attempt) == (None, 2, 1)
    assert messages(services, job_id) == ["launch", "launch"]
    assert sweeps.repair_jobs(services) == 0
    patience = []
    for _ in range(4):
        put_at(services, job_id, Stage.TRAIN, next_look_at=ago(1))
        assert sweeps.repair_jobs(services) == 1
        patience.append((row(services, job_id).next_look_at - utcnow()).total_seconds() / 60)
    assert [round(minutes) for minutes in patience] == [4, 8, 16, 32]


@pytest.mark.parametrize("holder", ["job", "picture"])
def test_a_live_lease_is_left_alone(services: Services, job_id: str, holder: str) -> None:
    if holder == "job":
        put_at(services, job_id, Stage.TRAIN, next_look_at=ago(1))
        lease_of(services, job_id)
    else:
        put_at_preprocess(services, job_id, next_look_at=ago(1))
        with services.database.writing() as session:
            assert claim_picture(session, job_id, 3, "alive", 30)
    assert not sweeps.repair_job(services, job_id)
    assert messages(services, job_id) == ["launch"]


def put_at_preprocess(services: Services, job_id: str, **values: Any) -> None:
    with services.database.writing() as session:
        session.execute(sa.update(Job).where(col(Job.id) == job_id).values(**values))


def test_used_up_attempts_fail_the_job_with_what_went_wrong_last(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.TRAIN, attempt=2, waiting_note="the machine burns")
    assert lease_of(services, job_id, lease_s=-1).attempt == 3
    assert sweeps.repair_jobs(services) == 1
    view = service.get(services, job_id)
    assert (view.status, view.failure.code) == ("failed", "worker_lost")
    assert "the machine burns" in view.failure.message
    assert balances(services) == {"held": 0, "spent": 0, "available": GRANTED}
    assert messages(services, job_id) == ["(launch)", "training.failed", "cleanup"]


def test_eight_sweeps_repair_a_job_once(services: Services, job_id: str, address: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    lease_of(services, job_id, lease_s=-1)
    works: list[Work] = [partial(repair.repair_job, job_id=job_id, settings=services.settings)] * RACERS
    assert Counter(at_once(address, works)) == {True: 1, False: RACERS - 1}
    assert messages(services, job_id) == ["launch", "launch"]


def test_repair_and_a_claim_do_not_both_get_a_dead_lease(services: Services, job_id: str, address: str) -> None:
    """The second caller changes nothing that the first relied on."""
    for _ in range(5):
        put_at(services, job_id, Stage.TRAIN, attempt=0, lease_until=ago(1), lease_holder="dead", next_look_at=ago(1))
        token = row(services, job_id).lease_token
        works: list[Work] = [
            partial(repair.repair_job, job_id=job_id, settings=services.settings),
            partial(_claim, job_id=job_id, stage=Stage.TRAIN),
        ]
        repaired, claimed_ = at_once(address, works)
        assert claimed_ == token + 1
        found = row(services, job_id)
        # Repaired first and then claimed, or claimed first and then left alone: the claim holds either way.
        assert found.lease_holder == "racer", repaired
        assert found.lease_until is not None


def test_an_expired_hold_with_nobody_at_work_ends_the_job(services: Services, settings: Settings) -> None:
    job_id = service.submit(services, request(services)).job_id
    put_at(services, job_id, Stage.TRAIN, lease_until=ago(1), lease_holder="dead")
    with services.database.writing() as session:
        session.execute(sa.update(credits.tables.HOLD).values(expires_at=ago(1)))
    assert sweeps.repair_jobs(services) == 1
    view = service.get(services, job_id)
    assert (view.status, view.failure.code) == ("failed", "timeout")
    assert [entry.kind for entry in accounts.statement(services, "ada")] == ["expire", "hold", "grant"]
    assert balances(services) == {"held": 0, "spent": 0, "available": GRANTED}


def test_an_expired_hold_with_somebody_at_work_is_left_to_them(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.TRAIN)
    lease_of(services, job_id)
    with services.database.writing() as session:
        session.execute(sa.update(credits.tables.HOLD).values(expires_at=ago(1)))
    assert not sweeps.repair_job(services, job_id)
    assert balances(services)["held"] == 50


def test_a_picture_that_kills_its_worker_each_time_is_given_up(services: Services, job_id: str) -> None:
    for attempt in (1, 2, 3):
        with services.database.writing() as session:
            found = claim_picture(session, job_id, 2, "doomed", -1)
            assert found is not None
            assert found[0].attempt == attempt
        assert picture(services, job_id, 2).state == "waiting"
        assert sweeps.repair_jobs(services) == 1
    left_out = picture(services, job_id, 2)
    assert (left_out.state, left_out.faults) == ("bad", ["unreadable"])
    assert "3 times" in ((left_out.report and left_out.report.error) or "")
    assert row(services, job_id).status in ACTIVE
    lacking = remaining_work(services, job_id)
    assert lacking is not None
    assert lacking.groups == [[0, 1, 3, 4]]


def test_a_message_that_nobody_took_is_sent_again_when_it_is_time(services: Services, job_id: str) -> None:
    assert sweeps.repair_jobs(services) == 0
    put_at_preprocess(services, job_id, next_look_at=ago(1))
    assert sweeps.repair_jobs(services) == 1
    assert messages(services, job_id) == ["launch", "launch"]
    assert row(services, job_id).status == Status.PENDING


# ---- retry ----------------------------------------------------------------------------------------------------


def test_a_retry_is_a_new_job_with_the_same_pictures_and_recipe(services: Services, job_id: str) -> None:
    with pytest.raises(IllegalMove, match="still"):
        service.retry(services, job_id)
    service.cancel(services, job_id)
    again: JobView = service.retry(services, job_id)
    assert again.job_id != job_id
    assert again.spec == service.get(services, job_id).spec
    old, new = ([picture(services, one, n).reference for n in range(5)] for one in (job_id, again.job_id))
    assert old == new
    assert row(services, again.job_id).webhook_url == "https://app.example"
    assert balances(services)["held"] == 50
