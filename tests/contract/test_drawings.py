"""Drawings on both databases: accepted once, priced, limited, cancelled, repaired; and what becomes of the credits."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import col, select

from core.clock import utcnow
from core.errors import (
    DeviceLost,
    IllegalMove,
    InsufficientCredits,
    KeyReused,
    LeaseLost,
    LoraNotReady,
    NotFound,
    OutOfMemory,
    SpecInvalid,
    TooManyRequests,
)
from core.settings import Settings
from credits.price import Rate, price_of_drawing, price_of_drawing_part
from jobs import keys, service
from jobs.deletion import requests as deletion_requests
from jobs.deletion import run as deletions
from jobs.drawings import drawing_transitions as moves
from jobs.drawings import drawings
from jobs.drawings.drawing_transitions import DrawingLease
from jobs.drawings.drawing_view import DrawingView
from jobs.lifecycle import sweeps, transitions
from jobs.owners import accounts
from jobs.requests.prices import drawing_rate_of
from jobs.services import Services
from notifications.tables import OutboxMessage
from storage.tables.deletions import Deletion
from storage.tables.drawings import DrawingRow, DrawnFile
from storage.tables.jobs import Stage
from tests.contract.jobs import GRANTED, put_at, request

JOB_COST = 100  # what `ready_job` was charged, by the default price of sd15


@pytest.fixture
def ready_job(services: Services) -> Iterator[str]:
    """A ready training of Ada's dog: sd15, 512 pixels."""
    found = service.submit(services, request(services, max_steps=1000, webhook_url=None)).job_id
    put_at(services, found, Stage.SETTLE)
    with services.database.writing() as session:
        transitions.settle(session, found, services.settings)
    assert accounts.balance(services, "ada").spent == JOB_COST
    yield found
    assert sweeps.run_audit(services) == []  # whatever a test did, the books are in order


def ask(services: Services, training: str, **changed: Any) -> DrawingView:
    return drawings.submit(services, {"owner_id": "ada", "job_id": training, "prompt": "on a beach", **changed})


def row(services: Services, drawing_id: str) -> DrawingRow:
    with services.database.reading() as session:
        return session.get_one(DrawingRow, drawing_id)


def write(services: Services, drawing_id: str, **values: Any) -> None:
    with services.database.writing() as session:
        session.execute(sa.update(DrawingRow).where(col(DrawingRow.id) == drawing_id).values(**values))


def claim(services: Services, drawing_id: str) -> DrawingLease:
    with services.database.writing() as session:
        claimed = moves.claim(session, drawing_id, "worker", 30)
    assert claimed is not None
    return claimed[0]


def launches(services: Services) -> list[dict[str, Any]]:
    with services.database.reading() as session:
        sent = select(OutboxMessage).where(OutboxMessage.topic == moves.TOPIC).order_by(col(OutboxMessage.created_at))
        return [dict(message.payload) for message in session.exec(sent)]


def spending(services: Services) -> tuple[int, int, int]:
    """Held, spent on drawings, available."""
    found = accounts.balance(services, "ada")
    return found.held, found.spent - JOB_COST, found.available


def test_a_drawing_is_accepted_with_its_hold_and_its_message(services: Services, ready_job: str) -> None:
    made = ask(services, ready_job, count=2, compare=True, seed=7)
    # 2 seeds, with and without the LoRA, 25 steps each, at 60 credits for 1,000 steps
    assert (made.status, made.total_steps, made.credits.held) == ("pending", 100, 6)
    assert (made.prompt, made.width, made.height, made.guidance) == ("sks, on a beach", 512, 512, 7.5)
    assert row(services, made.drawing_id).to_draw == [(7, True), (7, False), (8, True), (8, False)]
    assert spending(services) == (6, 0, GRANTED - JOB_COST - 6)
    assert launches(services) == [{"drawing_id": made.drawing_id, "family": "sd15"}]
    assert [one.drawing_id for one in drawings.of_training(services, ready_job, "ada")] == [made.drawing_id]


def test_the_same_key_draws_once_and_another_request_with_it_is_refused(services: Services, ready_job: str) -> None:
    first = ask(services, ready_job, idempotency_key="k")
    assert ask(services, ready_job, idempotency_key="k") == first  # with the random seed of the first
    with pytest.raises(KeyReused):
        ask(services, ready_job, idempotency_key="k", prompt="in the snow")
    assert len(launches(services)) == 1


def test_requests_with_one_key_at_the_same_time_draw_once(services: Services, ready_job: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: ask(services, ready_job, idempotency_key="k").drawing_id, range(8)))
    assert len(set(made)) == 1
    assert spending(services)[0] == 2


def test_what_is_refused_stores_nothing(services: Services, ready_job: str) -> None:
    for fault, changed in (
        ("prompt", {"prompt": " "}),
        ("prompt", {"prompt": "x" * 1001}),
        ("prompt", {"prompt": "a\0b"}),
        ("strength", {"strength": 2.1}),
        ("strength", {"strength": float("nan")}),
        ("seed", {"seed": 2**32}),
        ("count", {"count": 9}),
        ("count", {"count": True}),
        ("width", {"width": 100}),
        ("height", {"height": 4096}),
        ("steps", {"steps": 101}),
        ("workflow", {"workflow": {}}),
        ("job_id", {"job_id": None}),
        ("job_id", {"subject_id": "dog"}),
        ("base_model", {"base_model": "sd15"}),
    ):
        with pytest.raises(SpecInvalid) as refused:
            ask(services, ready_job, **changed)
        assert list(refused.value.faults) == [fault], changed
    with pytest.raises(NotFound):
        ask(services, ready_job, owner_id="bob")
    running = service.submit(services, request(services)).job_id
    with pytest.raises(IllegalMove, match="pending and has no LoRA"):
        ask(services, running)
    service.cancel(services, running)
    with pytest.raises(LoraNotReady):
        ask(services, ready_job, job_id=None, subject_id="cat")
    with pytest.raises(InsufficientCredits, match="this drawing costs 1536 credits"):
        ask(services, ready_job, steps=100, count=8, compare=True, width=2048, height=2048)
    assert launches(services) == []
    assert spending(services) == (0, 0, GRANTED - JOB_COST)


def test_a_subject_names_its_newest_training(services: Services, ready_job: str) -> None:
    made = ask(services, ready_job, job_id=None, subject_id="dog", base_model="sd15", prompt="a sks dog")
    assert (made.job_id, made.prompt) == (ready_job, "a sks dog")


def test_an_owner_has_so_many_open_drawings_at_most(services: Services, ready_job: str) -> None:
    most = services.settings.drawings_per_owner
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: _try_to_ask(services, ready_job), range(most + 4)))
    made = [one for one in results if one is not None]
    assert len(made) == most
    drawings.cancel(services, made[0], "ada")
    ask(services, ready_job)


def _try_to_ask(services: Services, job_id: str) -> str | None:
    try:
        return ask(services, job_id).drawing_id
    except TooManyRequests:
        return None


def test_a_ready_drawing_is_charged_once(services: Services, ready_job: str) -> None:
    made = ask(services, ready_job, compare=True)
    lease = claim(services, made.drawing_id)
    for expected in (True, False):
        with services.database.writing() as session:
            assert moves.finish(session, lease, services.settings) is expected
    done = drawings.get(services, made.drawing_id, "ada")
    assert (done.status, done.step, done.credits.charged, done.credits.held) == ("ready", 50, 3, 0)
    assert spending(services) == (0, 3, GRANTED - JOB_COST - 3)
    with pytest.raises(IllegalMove, match="is ready already"):
        drawings.cancel(services, made.drawing_id, "ada")


def test_a_cancelled_drawing_costs_the_steps_done(services: Services, ready_job: str) -> None:
    made = ask(services, ready_job, count=8)
    lease = claim(services, made.drawing_id)
    write(services, made.drawing_id, step=120)
    with pytest.raises(NotFound):
        drawings.cancel(services, made.drawing_id, "bob")
    for _ in range(2):  # again changes nothing
        done = drawings.cancel(services, made.drawing_id, "ada")
        assert (done.status, done.credits.charged, done.credits.refunded) == ("cancelled", 7, 5)
    assert spending(services)[:2] == (0, 7)
    with services.database.writing() as session, pytest.raises(LeaseLost):
        lease.write(session, step=200)  # the worker that drew it


def test_a_failed_drawing_costs_nothing(services: Services, ready_job: str) -> None:
    made = ask(services, ready_job)
    lease = claim(services, made.drawing_id)
    with services.database.writing() as session:
        assert moves.fail_leased(session, lease, OutOfMemory("too large"))
    done = drawings.get(services, made.drawing_id)
    assert done.failure is not None
    assert (done.status, done.failure.code, done.credits.charged) == ("failed", "out_of_memory", 0)
    assert spending(services)[:2] == (0, 0)


def test_a_free_drawing_has_no_hold(settings: Settings, ready_job: str) -> None:
    free = Services(settings.model_copy(update={"drawing_prices": {"sd15": 0}}))
    made = ask(free, ready_job)
    assert made.credits.held == 0
    with free.database.writing() as session:
        assert moves.finish(session, claim(free, made.drawing_id), free.settings)
    assert drawings.get(free, made.drawing_id).credits.charged == 0
    assert spending(free)[:2] == (0, 0)
    free.database.close()


def test_the_price(services: Services) -> None:
    usual = drawing_rate_of("sd15", services.settings)
    assert usual == Rate(60, 512)
    assert price_of_drawing(usual, 25, (512, 512)) == 2  # 1.5 rounded up
    assert price_of_drawing(Rate(10, 512), 1000, (512, 1024)) == 20
    assert price_of_drawing(usual, 1, (64, 64)) == 1
    assert price_of_drawing(Rate(0, 512), 1000, (512, 512)) == 0
    for done in range(0, 201, 25):
        assert price_of_drawing_part(usual, done, (768, 512)) <= price_of_drawing(usual, 200, (768, 512))
    with pytest.raises(SpecInvalid, match="drawing_prices: a price must not be negative"):
        price_of_drawing(Rate(-1, 512), 1, (64, 64))


# ---- workers that die ------------------------------------------------------------------------------------------


def test_a_drawing_is_claimed_once(services: Services, ready_job: str) -> None:
    made = ask(services, ready_job)
    claim(services, made.drawing_id)
    with services.database.writing() as session:
        assert moves.claim(session, made.drawing_id, "another", 30) is None
    assert drawings.repair(services) == 0  # its worker is alive


def test_the_sweep_launches_a_drawing_again_and_gives_up_after_three_workers(
    services: Services, ready_job: str
) -> None:
    made = ask(services, ready_job)
    assert drawings.repair(services) == 0  # its message was just sent
    write(services, made.drawing_id, next_look_at=utcnow() - timedelta(seconds=1))
    assert drawings.repair(services) == 1  # no worker took the message
    for attempt in range(1, 4):
        old = claim(services, made.drawing_id)
        assert old.attempt == attempt
        write(services, made.drawing_id, lease_until=utcnow() - timedelta(seconds=1))  # killed
        assert drawings.repair(services) == 1
        with services.database.writing() as session, pytest.raises(LeaseLost):
            old.write(session, step=1)
    done = drawings.get(services, made.drawing_id)
    assert done.failure is not None
    assert (done.status, done.failure.code) == ("failed", "worker_lost")
    assert spending(services)[:2] == (0, 0)
    assert len(launches(services)) == 4  # the first, and again for each of the first three


def test_a_picture_in_the_store_is_progress(services: Services, ready_job: str) -> None:
    """Attempts count the workers that died without a picture; the next worker draws the rest."""
    made = ask(services, ready_job, count=2, seed=7)
    lease = claim(services, made.drawing_id)
    services.store.put(f"{keys.drawing(made.drawing_id)}000.png", b"a picture")
    file = DrawnFile(number=0, seed=7, with_lora=True, sha256="0" * 64, bytes=9)
    with services.database.writing() as session:
        lease.write(session, pictures=[file], step=25, attempt=1)
    assert drawings.picture(services, made.drawing_id, 0, "ada") == b"a picture"
    for number, owner in ((0, "bob"), (1, "ada")):
        with pytest.raises(NotFound):
            drawings.picture(services, made.drawing_id, number, owner)


def test_a_temporary_failure_is_tried_again_later(services: Services, ready_job: str) -> None:
    made = ask(services, ready_job)
    with services.database.writing() as session:
        moves.postpone(session, claim(services, made.drawing_id), DeviceLost("the card failed"), services.settings)
    again = row(services, made.drawing_id)
    assert (again.status, again.attempt, again.waiting_note) == ("pending", 1, "the card failed")
    with services.database.reading() as session:
        due = session.exec(select(OutboxMessage.due_at).order_by(col(OutboxMessage.due_at).desc())).first()
    assert due is not None
    assert due > utcnow()


def test_a_worker_that_stops_hands_over_without_an_attempt(services: Services, ready_job: str) -> None:
    made = ask(services, ready_job)
    with services.database.writing() as session:
        moves.hand_over(session, claim(services, made.drawing_id), services.settings)
    assert (row(services, made.drawing_id).status, row(services, made.drawing_id).attempt) == ("pending", 0)


def test_a_drawing_that_no_worker_takes_fails_after_a_day(services: Services, ready_job: str) -> None:
    made = ask(services, ready_job)
    past = utcnow() - timedelta(days=1, seconds=1)
    write(services, made.drawing_id, created_at=past, next_look_at=past)
    assert drawings.repair(services) == 1
    done = drawings.get(services, made.drawing_id)
    assert done.failure is not None
    assert (done.status, done.failure.code) == ("failed", "timeout")
    assert spending(services)[:2] == (0, 0)


# ---- deletion --------------------------------------------------------------------------------------------------


def test_a_deleted_training_takes_its_drawings_with_it(services: Services, ready_job: str) -> None:
    """Also one that is drawn now: it is cancelled, and what its worker still wrote goes when the deletion ends."""
    done, drawn = ask(services, ready_job), ask(services, ready_job)
    for view in (done, drawn):
        services.store.put(f"{keys.drawing(view.drawing_id)}000.png", b"a picture")
    with services.database.writing() as session:
        moves.finish(session, claim(services, done.drawing_id), services.settings)
    lease = claim(services, drawn.drawing_id)
    asked = deletion_requests.delete_training(services, ready_job, "ada")
    assert not deletions.run(services, asked.id, lambda _: None)
    with services.database.writing() as session, pytest.raises(LeaseLost):
        lease.write(session, step=9)
    services.store.put(f"{keys.drawing(drawn.drawing_id)}001.png", b"written meanwhile")
    with services.database.writing() as session:
        session.execute(sa.update(Deletion).values(quiet_at=utcnow(), next_look_at=utcnow(), leased=False))
    assert deletions.run(services, asked.id, lambda _: None)
    assert list(services.store.list("drawings/")) == []
    assert launches(services) == []
    for view in (done, drawn):
        with pytest.raises(NotFound):
            drawings.get(services, view.drawing_id)
    assert spending(services)[0] == 0
    with pytest.raises(NotFound):
        ask(services, ready_job)
