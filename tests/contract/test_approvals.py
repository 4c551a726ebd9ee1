"""Jobs that an operator must approve: above a price, and the first one of an owner; on both databases."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from core.actor import acting
from core.clock import utcnow
from core.errors import NotFound
from core.settings import Settings
from jobs import service
from jobs.admission import approvals, pauses
from jobs.deletion import requests
from jobs.lifecycle import sweeps
from jobs.owners import accounts, audit_log
from jobs.services import Services
from storage.tables.jobs import Job, Stage, Status
from tests.contract.jobs import balances, events, messages, request, row


@pytest.fixture
def services(settings: Settings) -> Iterator[Services]:
    services = Services(settings.model_copy(update={"approval_above": 50}))
    accounts.grant(services, "ada", 1000, key="welcome")
    yield services
    services.database.close()


def submit(services: Services, **changed: Any) -> str:
    job_id: str = service.submit(services, request(services, **changed)).job_id
    return job_id


def submit_costly(services: Services) -> str:
    return submit(services, max_steps=4000)


def test_a_job_above_the_price_is_held_until_an_operator_approves_it(services: Services) -> None:
    cheap, costly = submit(services, max_steps=400), submit_costly(services)
    assert messages(services, cheap) == ["launch"]
    assert messages(services, costly) == []
    [held] = approvals.list_held(services)
    assert (held.job_id, held.owner_id) == (costly, "ada")
    assert held.credits == service.get(services, costly).credits.held > 50
    assert "above 50" in held.reason
    view = service.get(services, costly)
    assert (view.status, view.awaits_approval, view.place, view.expected_start) == (Status.PENDING, True, None, None)
    sweeps.repair_jobs(services)
    sweeps.admit_jobs(services)
    assert row(services, costly).admitted_at is None
    with acting("token", "token_boss"):
        approvals.approve(services, costly)
    assert row(services, costly).admitted_at is not None
    assert not service.get(services, costly).awaits_approval
    assert "launch" in messages(services, costly)
    assert [len(events(services, costly, kind)) for kind in ("held", "approved")] == [1, 1]
    [entry] = audit_log.list_entries(services, action="job.approved")
    assert (entry.actor_id, entry.job_id) == ("token_boss", costly)
    with pytest.raises(NotFound, match="waits for an approval"):
        approvals.approve(services, costly)


def test_a_refused_job_costs_nothing_and_says_why(services: Services) -> None:
    costly = submit_costly(services)
    approvals.refuse(services, costly, "ask for less")
    view = service.get(services, costly)
    assert view.failure is not None
    assert (view.status, view.failure.code) == (Status.FAILED, "not_approved")
    assert view.failure.message == "an operator refused the training: ask for less"
    assert balances(services)["held"] == 0
    assert approvals.list_held(services) == []


def test_a_held_job_that_nobody_approves_expires(services: Services) -> None:
    costly = submit_costly(services)
    assert approvals.expire(services) == 0
    with services.database.writing() as session:
        session.connection().execute(sa.update(Job).values(created_at=utcnow() - timedelta(days=8)))
    assert approvals.expire(services) == 1
    view = service.get(services, costly)
    assert view.failure is not None
    assert (view.failure.code, balances(services)["held"]) == ("not_approved", 0)


def test_the_first_training_of_an_owner_is_held_and_later_ones_are_not(settings: Settings) -> None:
    services = Services(settings.model_copy(update={"approval_first_job": True}))
    accounts.grant(services, "ada", 1000)
    first, second = submit(services), submit(services)
    assert [one.job_id for one in approvals.list_held(services)] == [first, second]
    approvals.approve(services, first)
    assert row(services, submit(services)).admitted_at is not None
    services.database.close()


def test_a_held_job_can_be_cancelled_paused_and_deleted(services: Services) -> None:
    one, two = submit_costly(services), submit_costly(services)
    service.cancel(services, one)  # the queue of held jobs admits nothing
    assert row(services, two).admitted_at is None
    pauses.pause(services, "all")
    pauses.resume(services, "all")
    assert [held.job_id for held in approvals.list_held(services)] == [two]
    requests.delete_training(services, two)
    assert row(services, two).stage == Stage.PREPROCESS
