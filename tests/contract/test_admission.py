"""Admission: whose job is sent next, and how many are sent, on both databases."""

import itertools
import math
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import col, select

from core.clock import utcnow
from core.errors import NotFound, SpecInvalid
from core.settings import Settings
from credits import ledger
from jobs import service
from jobs.admission import decide, pauses, places, statement, workers
from jobs.lifecycle import sweeps, transitions
from jobs.lifecycle.leases import claim_picture, claim_stage
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import intake
from storage.tables.admission import OwnerShare, TrainingWorker
from storage.tables.jobs import Job, Stage, Status
from tests.contract.jobs import REQUEST, events, messages, put_at, row
from tests.queries import queries_of

SLOTS, AHEAD = 2, 3
WINDOW = SLOTS + AHEAD
QUEUE = "train.sd15"


@pytest.fixture
def services(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    # No second of the machine's time decides: a test may take longer than a worker may be silent, or places are kept.
    monkeypatch.setattr(statement, "PREPARING_S", 3600.0)
    monkeypatch.setattr(places, "_CACHE_S", 3600.0)
    for module in (statement, places, workers):
        monkeypatch.setattr(module, "ALIVE_S", 3600.0)
    services = Services(settings)
    assert workers.beat(services, "train@one", [QUEUE], SLOTS) is False
    yield services
    services.database.close()


def submit(services: Services, owner_id: str, count: int = 1, **changed: Any) -> list[str]:
    accounts.grant(services, owner_id, 100_000)
    images = [intake.store_picture(services, owner_id, "dog", b"picture %d" % number) for number in range(5)]
    asked = {**REQUEST, "owner_id": owner_id, "images": images, **changed}
    return [service.submit(services, asked).job_id for _ in range(count)]


def admitted(services: Services) -> list[str]:
    """The owners of the admitted jobs that are not final, in the order of their admission."""
    with services.database.reading() as session:
        query = select(Job.owner_id).where(col(Job.admitted_at).is_not(None), col(Job.finished_at).is_(None))
        return list(session.exec(query.order_by(col(Job.admitted_at))))


def change(services: Services, job_ids: list[str], **values: Any) -> None:
    with services.database.writing() as session:
        session.connection().execute(sa.update(Job).where(col(Job.id).in_(job_ids)).values(**values))


def finish(services: Services, count: int = 1) -> list[str]:
    """Let the jobs that were admitted first leave the train stage. Returns the owners of those admitted instead."""
    prepare(services)
    before = set(in_flight(services))
    for job_id in in_flight(services)[:count]:
        with services.database.writing() as session:
            claimed = claim_stage(session, job_id, Stage.TRAIN, "test", 30)
            assert claimed is not None
            transitions.advance(session, claimed[0], services.settings, train_seconds=col(Job.train_seconds) + 60.0)
    return [row(services, job_id).owner_id for job_id in in_flight(services) if job_id not in before]


def prepare(services: Services) -> None:
    """Bring all admitted jobs to the train stage."""
    for job_id in in_flight(services):
        put_at(services, job_id, Stage.TRAIN)


def forget_places(services: Services) -> None:
    vars(services).pop("places", None)


def in_flight(services: Services) -> list[str]:
    with services.database.reading() as session:
        query = select(Job.id).where(
            col(Job.admitted_at).is_not(None), col(Job.stage).in_((Stage.PREPROCESS, Stage.DATASET, Stage.TRAIN)),
            col(Job.finished_at).is_(None),
        )  # fmt: skip
        return list(session.exec(query.order_by(col(Job.admitted_at))))


def test_with_room_a_job_is_sent_by_the_transaction_that_accepts_it(services: Services) -> None:
    [job_id] = submit(services, "ada")
    assert row(services, job_id).admitted_at is not None
    assert messages(services, job_id) == ["launch"]
    assert not events(services, job_id, "queued") + events(services, job_id, "admitted")


def test_a_job_beyond_the_window_waits_until_one_leaves_the_train_stage(services: Services) -> None:
    jobs = submit(services, "ada", WINDOW + 2)
    assert [row(services, job).admitted_at is not None for job in jobs] == [True] * WINDOW + [False] * 2
    waiting = jobs[WINDOW]
    assert (row(services, waiting).status, messages(services, waiting)) == (Status.PENDING, [])
    assert len(events(services, waiting, "queued")) == 1
    assert finish(services) == ["ada"]
    assert messages(services, waiting) == ["launch"]
    assert len(events(services, waiting, "admitted")) == 1
    assert messages(services, jobs[-1]) == []


def test_a_sweep_decides_nothing_for_queues_in_which_no_job_waits(services: Services) -> None:
    submit(services, "ada", WINDOW - 1)
    with queries_of(services.database) as queries:
        sweeps.admit_jobs(services)
    assert any("training_worker" in query for query in queries), "it asked whether there is room"
    assert not any("UPDATE training_job SET admitted_at" in query for query in queries)


def test_every_end_of_a_job_lets_the_next_one_start(services: Services) -> None:
    jobs = submit(services, "ada", WINDOW + 2)
    service.cancel(services, jobs[-1])  # it waits: nothing was sent, nothing is charged
    assert messages(services, jobs[-1]) == ["cleanup"]
    service.cancel(services, jobs[0])
    assert messages(services, jobs[WINDOW]) == ["launch"]
    assert sweeps.run_audit(services) == []


def test_the_sweep_leaves_waiting_jobs_alone_and_admits_after_a_worker_has_vanished(services: Services) -> None:
    jobs = submit(services, "ada", WINDOW + 2)
    change(services, jobs, next_look_at=utcnow() - timedelta(days=1))
    assert sweeps.repair_jobs(services) == WINDOW
    assert messages(services, jobs[-1]) == []
    assert not sweeps.repair_job(services, jobs[-1], "msg")
    workers.leave(services, "train@one")  # no worker reports: as many as the floor
    sweeps.admit_jobs(services)
    assert messages(services, jobs[-1]) == ["launch"]


def test_only_admitted_jobs_are_trained(services: Services) -> None:
    waiting = submit(services, "ada", WINDOW + 1)[-1]
    put_at(services, waiting, Stage.TRAIN)
    with services.database.writing() as session:
        assert claim_stage(session, waiting, Stage.TRAIN, "test", 30) is None
    finish(services)
    with services.database.writing() as session:
        assert claim_stage(session, waiting, Stage.TRAIN, "test", 30) is not None


def test_owners_take_turns_whatever_the_length_of_their_backlog(services: Services) -> None:
    submit(services, "big", 30)
    prepare(services)
    for owner in ("ada", "bob", "eve"):
        submit(services, owner, 2)
    started = [owner for _ in range(12) for owner in finish(services)]
    # The three wait for what was sent before them, and then come before the big one until they have had as much.
    assert set(started[:6]) == {"ada", "bob", "eve"}, started
    assert set(started[6:]) == {"big"}


def test_an_owner_gets_places_by_weight(services: Services) -> None:
    with services.database.writing() as session:
        session.add(OwnerShare(owner_id="gold", weight=3.0))
    submit(services, "ada", 40)
    submit(services, "gold", 40)
    finish(services, WINDOW)
    started = Counter(owner for _ in range(24) for owner in finish(services))
    assert 16 <= started["gold"] <= 20, started


def test_what_was_used_recently_counts_and_fades(services: Services) -> None:
    now_s = utcnow().timestamp()
    with services.database.writing() as session:
        session.add(OwnerShare(owner_id="busy", used_s=3600, used_at=now_s))
        session.add(OwnerShare(owner_id="rested", used_s=7000, used_at=now_s - 48 * 3600))
    submit(services, "other", WINDOW)
    prepare(services)
    submit(services, "busy", 1)
    submit(services, "rested", 1)
    assert finish(services) == ["rested"]


def test_a_higher_class_goes_first_and_a_starved_one_rises(services: Services) -> None:
    submit(services, "ada", WINDOW)
    prepare(services)
    [low] = submit(services, "low", priority="low")
    submit(services, "normal")
    [high] = submit(services, "high", 1, priority="high")
    assert finish(services) == ["high"]
    change(services, [low], created_at=utcnow() - timedelta(seconds=2 * services.settings.admission_raise_s + 1))
    prepare(services)
    [high] = submit(services, "high", 1, priority="high")
    assert finish(services) == ["low"]
    assert row(services, high).admitted_at is None


def test_waiting_long_does_not_put_a_large_backlog_before_newcomers(services: Services) -> None:
    jobs = submit(services, "big", 20)
    change(services, jobs, created_at=utcnow() - timedelta(days=1))
    finish(services)  # the owner is served all the time
    prepare(services)
    submit(services, "ada")
    assert finish(services) == ["ada"]


def test_jobs_that_fit_a_running_cohort_go_first_among_equals_but_not_for_ever(services: Services) -> None:
    submit(services, "ada", WINDOW, resolution=512)
    other, fits = submit(services, "ada", resolution=768) + submit(services, "ada", resolution=512)
    finish(services)
    assert (row(services, other).admitted_at, row(services, fits).admitted_at is not None) == (None, True)
    change(services, [other], created_at=utcnow() - timedelta(minutes=11))
    submit(services, "ada", resolution=512)
    finish(services)
    assert row(services, other).admitted_at is not None


def test_of_two_owners_with_the_same_share_the_one_that_fits_a_running_cohort_goes_first(services: Services) -> None:
    submit(services, "big", WINDOW, resolution=512)
    prepare(services)
    submit(services, "ada", resolution=768)
    submit(services, "bob", resolution=512)
    assert finish(services) == ["bob"]
    assert finish(services) == ["ada"]  # the share of the owner counts before the shape


def test_pictures_that_take_long_hold_up_no_other_owner(services: Services) -> None:
    submit(services, "slow", 20)
    assert admitted(services) == ["slow"] * WINDOW
    [job_id] = submit(services, "ada")
    assert row(services, job_id).admitted_at is not None
    change(services, in_flight(services), admitted_at=utcnow() - timedelta(seconds=statement.PREPARING_S + 1))
    submit(services, "bob")
    assert admitted(services)[-WINDOW] == "bob"  # after ten seconds the slow ones leave room for others


def test_an_owner_whose_pictures_take_long_has_twice_the_window_in_flight_at_most(services: Services) -> None:
    submit(services, "slow", 3 * WINDOW)
    for _ in range(4):
        change(services, in_flight(services), admitted_at=utcnow() - timedelta(seconds=statement.PREPARING_S + 1))
        sweeps.admit_jobs(services)
    assert len(in_flight(services)) == 2 * WINDOW


def test_a_full_train_queue_holds_up_everybody(services: Services) -> None:
    for job_id in submit(services, "big", WINDOW):
        put_at(services, job_id, Stage.TRAIN)
    [job_id] = submit(services, "ada")
    assert row(services, job_id).admitted_at is None


def test_each_queue_has_its_own_window(services: Services) -> None:
    submit(services, "ada", WINDOW + 1)
    [job_id] = submit(services, "ada", base_model="sdxl")
    assert row(services, job_id).admitted_at is not None


def test_a_worker_that_joins_lets_jobs_start_and_one_that_drains_has_no_slots(services: Services) -> None:
    submit(services, "ada", 20)
    workers.beat(services, "train@two", [QUEUE, "train.sdxl"], 8)
    assert len(in_flight(services)) == SLOTS + 8 + AHEAD
    workers.drain(services, "train@two")
    assert workers.beat(services, "train@two", [QUEUE, "train.sdxl"], 8) is True
    finish(services, 3)
    assert len(in_flight(services)) == SLOTS + 8
    [one, two] = workers.list_workers(services)
    assert (one.slots, one.draining, two.queues, two.draining) == (SLOTS, False, [QUEUE, "train.sdxl"], True)


def test_schedulers_at_once_admit_each_job_once_and_never_more_than_fit(services: Services, settings: Settings) -> None:
    jobs = submit(services, "ada", 12)
    workers.leave(services, "train@one")
    with services.database.writing() as session:
        session.connection().execute(sa.update(Job).values(admitted_at=None))
        session.connection().execute(sa.text("DELETE FROM outbox_message"))
    workers.beat(services, "train@one", [QUEUE], SLOTS)  # admits the first ones
    many = [Services(settings) for _ in range(6)]

    def decide(number: int) -> None:
        for job_id in in_flight(services)[number::6]:
            service.cancel(many[number], job_id)
        for _ in range(3):
            sweeps.admit_jobs(many[number])

    with ThreadPoolExecutor(len(many)) as pool:
        list(pool.map(decide, range(len(many))))
    assert len(in_flight(services)) <= WINDOW
    sweeps.admit_jobs(services)
    assert len(in_flight(services)) == min(WINDOW, len(jobs) - WINDOW)
    for job_id in jobs:
        assert messages(services, job_id).count("launch") + messages(services, job_id).count("(launch)") <= 1
    for one in many:
        one.database.close()


def test_a_hold_gets_its_full_time_again_when_the_job_is_admitted(services: Services) -> None:
    jobs = submit(services, "ada", WINDOW + 1)
    with services.database.writing() as session:
        session.connection().execute(sa.text("UPDATE credit_hold SET expires_at = '2026-01-01 00:00:00.000000+00:00'"))
    change(services, jobs, next_look_at=utcnow() - timedelta(days=1))
    sweeps.repair_jobs(services)
    assert {row(services, job).status for job in jobs[:-1]} == {Status.FAILED}  # as before: nobody works on them
    with services.database.reading() as session:
        hold = ledger.hold_of(session, jobs[-1])
    assert hold is not None
    assert (row(services, jobs[-1]).admitted_at is not None, hold.expires_at > utcnow()) == (True, True)


def test_a_job_of_an_earlier_version_is_sent_again_as_ever(services: Services) -> None:
    [job_id] = submit(services, "ada")
    change(services, [job_id], queue="", admitted_at=None, next_look_at=utcnow() - timedelta(days=1))
    assert sweeps.repair_jobs(services) == 1
    with services.database.writing() as session:
        assert claim_picture(session, job_id, 0, "test", 30) is not None
    sweeps.admit_jobs(services)
    assert row(services, job_id).admitted_at is None


# ---- what the owner sees --------------------------------------------------------------------------------------------


def test_a_waiting_job_has_its_place_and_expected_times_in_the_order_of_the_decisions(services: Services) -> None:
    submit(services, "big", 12)
    prepare(services)
    for owner in ("ada", "bob"):
        submit(services, owner, 2)
    with services.database.reading() as session:
        waiting = session.exec(select(Job.id).where(col(Job.admitted_at).is_(None))).all()
    forget_places(services)
    views = {job_id: service.get(services, job_id) for job_id in waiting}
    order = sorted(waiting, key=lambda job_id: views[job_id].place or 0)
    assert [views[job_id].place for job_id in order] == list(range(1, len(waiting) + 1))
    starts = [views[job_id].expected_start for job_id in order]
    assert starts == sorted(start for start in starts if start is not None)
    started: list[str] = []
    while len(started) < len(order):
        finish(services)
        started += sorted((one for one in in_flight(services) if one in order and one not in started), key=order.index)
    assert started == order


def test_a_job_that_was_sent_has_no_place(services: Services) -> None:
    [job_id] = submit(services, "ada")
    view = service.get(services, job_id)
    assert (view.place, view.priority) == (None, "normal")
    assert None not in (view.expected_start, view.expected_end)
    service.cancel(services, job_id)
    view = service.get(services, job_id)
    assert (view.place, view.expected_start, view.expected_end) == (None, None, None)


def test_a_job_that_was_accepted_since_is_put_between_the_jobs_whose_places_are_known(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computing all places is linear in the waiting jobs, so it is not done again for each job that is accepted."""
    monkeypatch.setattr("jobs.admission.places._AGE_PER_COST", math.inf)
    submit(services, "big", 12)
    prepare(services)
    submit(services, "ada", 2)
    forget_places(services)
    assert service.get(services, submit(services, "big")[0]).place == 10
    late = {
        owner: submit(services, owner, priority=priority)[0] for owner, priority in (("bob", "normal"), ("eve", "high"))
    }
    known = {owner: service.get(services, job_id) for owner, job_id in late.items()}
    forget_places(services)
    assert {owner: view.place for owner, view in known.items()} == {"bob": 2, "eve": 1}
    assert None not in (known["bob"].expected_start, known["bob"].expected_end)


def test_the_places_of_many_jobs_are_computed_by_a_thread_and_until_then_age_counts(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(services, "big", 12)
    prepare(services)
    [late] = submit(services, "ada")
    forget_places(services)
    monkeypatch.setattr("jobs.admission.places._FEW", 2)
    with services.database.writing() as busy:  # on SQLite too, others read meanwhile
        lock = threading.Event()
        monkeypatch.setattr("jobs.admission.places._let_others_run", lambda _number: lock.wait(30))
        assert service.get(services, late).place == 12 - WINDOW + 1
        assert service.get(services, late).place == 12 - WINDOW + 1
        assert [thread.name for thread in threading.enumerate()].count("places train.sd15") == 1
        lock.set()
        busy.rollback()
    services.places.wait()
    assert service.get(services, late).place == 1


def test_a_window_that_opens_wide_is_filled_in_short_transactions(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One transaction for all of them would keep every request waiting for its locks."""
    monkeypatch.setattr(decide, "_OPEN_S", 60.0)  # no second of the machine's time decides
    jobs = submit(services, "ada", 45)
    commits: list[int] = []
    sa.event.listen(services.database.engine, "commit", lambda _connection: commits.append(len(in_flight(services))))
    workers.beat(services, "train@two", [QUEUE], 18)
    assert in_flight(services) == jobs[:25]  # 20 slots, and a quarter of them ahead
    assert max(later - earlier for earlier, later in itertools.pairwise(commits)) <= 16
    with services.database.writing() as session:  # by hand, so that nothing noticed it
        session.connection().execute(sa.update(TrainingWorker).values(slots=25))
    prepare(services)
    assert finish(services) == ["ada"] * 4  # a request or a worker admits a few; the sweep does the rest
    sweeps.admit_jobs(services)
    assert len(in_flight(services)) == len(jobs) - 1


# ---- pauses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["all", f"queue:{QUEUE}", "family:sd15"])
def test_in_a_pause_nothing_starts_and_nothing_is_lost(services: Services, scope: str) -> None:
    running, *sent = submit(services, "ada", WINDOW)
    prepare(services)
    with services.database.writing() as session:
        assert claim_stage(session, running, Stage.TRAIN, "test", 30) is not None
    assert pauses.pause(services, scope, "new cards").scope == scope
    pauses.pause(services, scope)
    [late] = submit(services, "ada")
    sweeps.admit_jobs(services)
    assert in_flight(services) == [running]
    with services.database.writing() as session:
        assert [claim_stage(session, job, Stage.TRAIN, "test", 30) for job in sent] == [None] * len(sent)
    pauses.resume(services, scope)
    assert set(in_flight(services)) == {running, *sent}
    assert row(services, late).admitted_at is None  # it was sent after them, and waits for a place
    assert pauses.list_pauses(services) == []
    with services.database.writing() as session:
        assert claim_stage(session, sent[0], Stage.TRAIN, "test", 30) is not None


def test_a_pause_of_one_family_leaves_the_others_alone(services: Services) -> None:
    pauses.pause(services, "family:sdxl")
    [paused], [free] = submit(services, "ada", base_model="sdxl"), submit(services, "ada")
    assert (row(services, paused).admitted_at, row(services, free).admitted_at is not None) == (None, True)


def test_what_cannot_be_paused_is_named(services: Services) -> None:
    with pytest.raises(SpecInvalid, match="scope"):
        pauses.pause(services, "family:unknown")
    with pytest.raises(NotFound, match="not paused"):
        pauses.resume(services, "all")
