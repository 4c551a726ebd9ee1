"""A job's money at its end: pro rata when it is cancelled, never twice, all or nothing; and what the books say."""

import logging
from collections import Counter
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session, col

import credits.tables
from core.clock import utcnow
from core.errors import IllegalMove, NotFound, OutOfMemory
from credits import ledger
from jobs import service
from jobs.drawings import drawing_transitions, drawings
from jobs.lifecycle import invariants, sweeps, transitions
from jobs.owners import accounts
from jobs.requests import quotes
from jobs.services import Services
from notifications.tables import MESSAGE
from storage.tables.jobs import ACTIVE, Job, Stage
from tests.contract import jobs
from tests.contract.jobs import GRANTED, messages, put_at, request, row, task_call
from tests.contract.processes import Work, at_once, killed_at

RACERS = 8
RESOLVED = ("settle", "release", "expire")


def kinds(services: Services, owner_id: str = "ada") -> list[str]:
    return [entry.kind for entry in accounts.statement(services, owner_id)]


def notice(services: Services, job_id: str) -> dict[str, Any]:
    """What the last notice of the job tells."""
    with services.database.reading() as session:
        query = sa.select(MESSAGE.c.payload).where(MESSAGE.c.job_id == job_id, MESSAGE.c.kind == "notice")
        kept: dict[str, Any] = session.execute(query.order_by(MESSAGE.c.sequence.desc())).scalars().first()
        return kept


# ---- cancelled in mid-training --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "step", "charged"),
    [
        (Stage.PREPROCESS, 0, 0),
        (Stage.DATASET, 0, 0),
        (Stage.TRAIN, 0, 0),
        (Stage.TRAIN, 9, 0),  # nine tenths of a credit
        (Stage.TRAIN, 129, 12),
        (Stage.UPLOAD, 500, 50),
    ],
)
def test_the_steps_done_are_charged_rounded_down(
    services: Services, job_id: str, stage: Stage, step: int, charged: int
) -> None:
    put_at(services, job_id, stage, step=step)
    view = service.cancel(services, job_id)
    assert view.status == "cancelled"
    assert view.credits.to_dict() == {"held": 0, "charged": charged, "refunded": 50 - charged}
    assert notice(services, job_id)["job"]["credits"] == view.credits.to_dict()
    assert jobs.balances(services) == {"held": 0, "spent": charged, "available": GRANTED - charged}
    assert kinds(services) == ["settle" if charged else "release", "hold", "grant"]


def test_a_failed_job_is_charged_nothing_however_far_it_came(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.UPLOAD, step=500)
    with services.database.writing() as session:
        assert transitions.fail(session, job_id, OutOfMemory("x"))
    assert service.get(services, job_id).credits.to_dict() == {"held": 0, "charged": 0, "refunded": 50}
    assert jobs.balances(services)["spent"] == 0


def test_a_late_cancel_costs_no_more_than_was_held(services: Services, job_id: str) -> None:
    """Though prices rose meanwhile."""
    put_at(services, job_id, Stage.TRAIN, step=400)
    dearer = services.settings.model_copy(update={"prices": {"sd15": 10_000}})
    with services.database.writing() as session:
        assert transitions.cancel(session, job_id, dearer)
    assert jobs.balances(services) == {"held": 0, "spent": 50, "available": GRANTED - 50}


def test_a_cancel_after_the_hold_was_over_costs_nothing(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.TRAIN, step=400)
    expire(services, job_id)
    assert service.cancel(services, job_id).credits.to_dict() == {"held": 0, "charged": 0, "refunded": 50}
    assert kinds(services) == ["expire", "hold", "grant"]
    assert jobs.balances(services)["spent"] == 0
    assert sweeps.leaks(services) == []  # nothing was delivered


def test_eight_cancels_and_a_worker_that_still_reports_charge_once(
    services: Services, job_id: str, address: str
) -> None:
    put_at(services, job_id, Stage.TRAIN, step=100)
    works: list[Work] = [partial(transitions.cancel, job_id=job_id, settings=services.settings)] * RACERS
    works.append(partial(_report, job_id=job_id))
    *cancelled, _ = at_once(address, works)
    assert Counter(cancelled) == {True: 1, False: RACERS - 1}
    found = row(services, job_id)
    assert found.charged == found.step // 10 in (10, 20)  # what was recorded is what was charged
    assert jobs.balances(services)["spent"] == found.charged
    assert len([kind for kind in kinds(services) if kind in RESOLVED]) == 1
    assert messages(services, job_id) == ["(launch)", "training.cancelled", "cleanup"]


def _report(session: Session, job_id: str) -> bool:
    """A worker's progress, which counts only while the job is active."""
    active = sa.update(Job).where(col(Job.id) == job_id, col(Job.status).in_(ACTIVE)).values(step=200)
    return bool(session.connection().execute(active).rowcount)


@pytest.mark.drawn
def test_a_cancel_that_is_killed_anywhere_happened_wholly_or_not_at_all(services: Services, address: str) -> None:
    """SIGKILL before and after every statement: status, money and notice are of one transaction."""
    services.database.engine.dispose()
    statements = [f"{side} {number}" for number in range(1, 60) for side in ("before", "after")]
    spent = 0
    for count, point in enumerate(["before commit", "after commit", *statements]):
        job_id = service.submit(services, request(services, seed=count)).job_id
        put_at(services, job_id, Stage.TRAIN, step=20)
        killed = killed_at(address, point, partial(transitions.cancel, job_id=job_id, settings=services.settings))
        happened = point == "after commit" or not killed
        view = service.get(services, job_id)
        assert view.status == ("cancelled" if happened else "training"), point
        assert ("training.cancelled" in messages(services, job_id)) == happened, point
        service.cancel(services, job_id)
        spent += 2
        assert jobs.balances(services) == {"held": 0, "spent": spent, "available": GRANTED - spent}, point
        if not killed:
            assert count >= 2 + 2 * 10, "fewer statements than a cancel has"
            return
    raise AssertionError("there were not enough points")


def test_the_quote_says_what_a_cancel_would_cost(services: Services) -> None:
    quote = quotes.quote(services, request(services, max_steps=1001))
    assert (quote.credits, quote.credits_per_step, quote.cancelled_half_way) == (101, 0.1, 50)
    small = quotes.quote(services, request(services, max_steps=3))
    assert (small.credits, small.cancelled_half_way) == (1, 0)


def test_a_refund_gives_back_what_was_charged_and_no_more(services: Services, job_id: str) -> None:
    put_at(services, job_id, Stage.SETTLE)
    with services.database.writing() as session:
        transitions.settle(session, job_id, services.settings)
    for _ in range(2):
        owner_id, found = accounts.refund(services, job_id, 20, "complaint 7")
        assert (owner_id, found.spent) == ("ada", 30)
    assert service.get(services, job_id).credits.to_dict() == {"held": 0, "charged": 30, "refunded": 20}
    with pytest.raises(IllegalMove):
        accounts.refund(services, job_id, 31)
    with pytest.raises(NotFound):
        accounts.refund(services, "job_nowhere", 1)
    assert jobs.balances(services) == {"held": 0, "spent": 30, "available": GRANTED - 30}


# ---- leaks ----------------------------------------------------------------------------------------------------


def expire(services: Services, job_id: str) -> None:
    with services.database.writing() as session:
        hold = ledger.hold_of(session, job_id)
        assert hold is not None
        ledger.expire(session, hold.id)


def test_a_leak_is_counted_and_alerts_for_a_day(
    services: Services, job_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    put_at(services, job_id, Stage.SETTLE)
    expire(services, job_id)
    with services.database.writing() as session:
        assert transitions.settle(session, job_id, services.settings)
    assert [(leak.job_id, leak.owner_id, leak.credits) for leak in sweeps.leaks(services)] == [(job_id, "ada", 50)]
    assert sweeps.run_audit(services) == []  # the books are in order all the same

    def alerts() -> list[str]:
        caplog.clear()
        sweeps.run_audit(services)
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]

    (alert,) = alerts()
    assert alert.startswith("leak: 1 training(s)")
    assert job_id in alert
    with services.database.writing() as session:
        session.execute(sa.update(Job).values(finished_at=utcnow() - timedelta(hours=25)))
    assert alerts() == []
    assert len(sweeps.leaks(services)) == 1


# ---- the books of the jobs ------------------------------------------------------------------------------------

# Damage by job (`{ready}`, `{failed}`, `{cancelled}`, `{active}`: its id; `{drawn}`: a drawing's), and the checks that
# must name it.
DAMAGE = {
    "UPDATE training_job SET hold_id = NULL WHERE id = '{active}'": {"every job has a hold"},
    "UPDATE training_job SET hold_id = (SELECT hold_id FROM training_job WHERE id = '{ready}') WHERE id = '{active}'": {
        "every job has a hold"
    },
    "UPDATE training_job SET owner_id = 'eve' WHERE id = '{ready}'": {"every job has a hold"},
    "DELETE FROM training_job WHERE id = '{active}'": {"every hold belongs to a job or a drawing"},
    "INSERT INTO deleted_training (id, deleted_at) SELECT id, created_at FROM training_job WHERE id = '{active}'": {
        "the hold of a deleted job is resolved"
    },
    "DELETE FROM device_drawing WHERE id = '{drawn}'": {"every hold belongs to a job or a drawing"},
    "UPDATE device_drawing SET owner_id = 'eve' WHERE id = '{drawn}'": {"the hold of a drawing is its owner's"},
    "UPDATE credit_hold SET state = 'held', settled = 0 WHERE training_id = '{drawn}'": {
        "the hold of a drawing is its owner's",
        "a drawing was charged what its hold settled",
    },
    "UPDATE device_drawing SET charged = charged + 1 WHERE id = '{drawn}'": {
        "a drawing was charged what its hold settled"
    },
    "UPDATE device_drawing SET status = 'failed' WHERE id = '{drawn}'": {"a drawing was charged what its hold settled"},
    "UPDATE device_drawing SET finished_at = NULL WHERE id = '{drawn}'": {"a final drawing has an end time"},
    "UPDATE credit_hold SET state = 'released' WHERE training_id = '{active}'": {"the hold of an active job is live"},
    "UPDATE training_job SET status = 'training', finished_at = NULL, charged = NULL WHERE id = '{ready}'": {
        "the hold of an active job is live",
        "a final job has one clean-up",
        "the end of a job is announced once",
    },
    "UPDATE credit_hold SET state = 'held', settled = 0 WHERE training_id = '{ready}'": {
        "the hold of a final job is resolved",
        "a job was charged what its hold settled",
        "a ready job is charged",
    },
    "UPDATE training_job SET charged = charged + 1 WHERE id = '{ready}'": {"a job was charged what its hold settled"},
    "UPDATE training_job SET charged = NULL WHERE id = '{failed}'": {"a job was charged what its hold settled"},
    "UPDATE training_job SET charged = 0 WHERE id = '{active}'": {"a job was charged what its hold settled"},
    "UPDATE credit_hold SET state = 'settled', settled = 5 WHERE training_id = '{failed}'": {
        "a failed job is charged nothing",
        "a job was charged what its hold settled",
    },
    "UPDATE training_job SET step = 0 WHERE id = '{cancelled}'": {"a job cancelled before its first step"},
    "UPDATE training_job SET stage = 'dataset' WHERE id = '{cancelled}'": {"a job cancelled before its first step"},
    "UPDATE credit_hold SET state = 'released', settled = 0 WHERE training_id = '{ready}'": {"a ready job is charged"},
    "UPDATE training_job SET lora_key = NULL WHERE id = '{ready}'": {"a ready job has passed every stage"},
    "UPDATE training_job SET stage = 'upload' WHERE id = '{ready}'": {"a ready job has passed every stage"},
    "UPDATE training_job SET finished_at = NULL WHERE id = '{failed}'": {"a final job has an end time"},
    "UPDATE training_job SET finished_at = created_at WHERE id = '{active}'": {"a final job has an end time"},
    "UPDATE training_job SET lease_until = created_at WHERE id = '{cancelled}'": {"a final job has an end time"},
    "UPDATE outbox_message SET topic = 'training.failed' WHERE job_id = '{ready}' AND topic = 'training.completed'": {
        "the end of a job is announced once"
    },
    "DELETE FROM outbox_message WHERE job_id = '{failed}' AND topic = 'training.failed'": {
        "the end of a job is announced once",
        "the messages of a job are numbered",
    },
    "UPDATE outbox_message SET kind = 'notice', topic = 'training.completed' WHERE job_id = '{ready}'"
    " AND kind = 'cleanup'": {"the end of a job is announced once", "a final job has one clean-up"},
    "UPDATE outbox_message SET kind = 'cleanup' WHERE job_id = '{active}'": {"a final job has one clean-up"},
    "DELETE FROM outbox_message WHERE task_id = 'a' AND topic = 'result'": {
        "a task that waits for a job gets its result"
    },
    "UPDATE training_job SET on_end = NULL WHERE id = '{ready}'": {"the task of on_end is sent once"},
    "UPDATE outbox_message SET sequence = 9 WHERE job_id = '{active}'": {"the messages of a job are numbered"},
}


@pytest.fixture
def ended(services: Services) -> dict[str, str]:
    """One job of each end, an active one, and a drawing that is ready: their ids, in good books.

    A Celery task waits for the first.
    """
    on_end = {"task": "shop.notice"}
    calls = {"ready": task_call("a")}
    found = {
        name: service.submit(services, request(services, seed=n, on_end=on_end), call=calls.get(name)).job_id
        for n, name in enumerate(ENDS)
    }
    put_at(services, found["ready"], Stage.SETTLE)
    for name in ("failed", "cancelled", "active"):
        put_at(services, found[name], Stage.TRAIN, step=100)
    with services.database.writing() as session:
        transitions.settle(session, found["ready"], services.settings)
        transitions.fail(session, found["failed"], OutOfMemory("x"))
        transitions.cancel(session, found["cancelled"], services.settings)
    arguments = {"owner_id": "ada", "job_id": found["ready"], "prompt": "on a beach"}
    found["drawn"] = drawings.submit(services, arguments).drawing_id
    with services.database.writing() as session:
        claimed = drawing_transitions.claim(session, found["drawn"], "worker", 30)
        assert claimed is not None
        assert drawing_transitions.finish(session, claimed[0], services.settings)
    assert sweeps.run_audit(services) == []
    return found


ENDS = ("ready", "failed", "cancelled", "active")


def test_every_invariant_that_is_broken_is_named(services: Services, ended: dict[str, str]) -> None:
    tried = set()
    with services.database.engine.connect() as connection:
        without_rules(connection)
        for damage, names in DAMAGE.items():
            assert connection.exec_driver_sql(damage.format(**ended)).rowcount > 0, damage
            with Session(connection) as session:
                findings = invariants.check(session)
            connection.rollback()
            for name in names:
                assert any(finding.what.startswith(name) for finding in findings), (damage, name, findings)
            tried |= {finding.what for finding in findings}
        with Session(connection) as session:
            assert invariants.check(session) == []
    assert tried == set(invariants.CHECKS), "a check that no damage above breaks"


def test_what_is_off_with_a_job_is_an_error_of_the_audit(
    services: Services, ended: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with services.database.writing() as session:
        session.execute(sa.update(Job).where(col(Job.id) == ended["ready"]).values(charged=7))
    (finding,) = sweeps.run_audit(services)
    assert (finding.where, finding.expected, finding.found) == (ended["ready"], "ready, charged 50", "ready, charged 7")
    assert f"ledger: a job was charged what its hold settled: {ended['ready']}" in caplog.text


def without_rules(connection: sa.Connection) -> None:
    """The same tables without keys, checks and triggers, so that anything can be written into them."""
    tables = ("training_job", "device_drawing", "outbox_message", *(table.name for table in reversed(_LEDGER)))
    cascade = "CASCADE" if connection.dialect.name == "postgresql" else ""
    if not cascade:
        connection.commit()
        connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        connection.exec_driver_sql("BEGIN")
    for table in tables:
        connection.exec_driver_sql(f"CREATE TABLE bare_{table} AS SELECT * FROM {table}")  # noqa: S608
        connection.exec_driver_sql(f"DROP TABLE {table} {cascade}")
        connection.exec_driver_sql(f"ALTER TABLE bare_{table} RENAME TO {table}")
    connection.commit()


_LEDGER = (credits.tables.ACCOUNT, credits.tables.HOLD, credits.tables.ENTRY)
