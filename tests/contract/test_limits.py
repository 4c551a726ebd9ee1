"""Limits of owners and tokens, raced by processes; and the audit log, which nothing changes; on both databases."""

from contextlib import suppress
from datetime import timedelta
from multiprocessing import get_context
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import select

from core.actor import acting
from core.errors import LimitReached, NotFound, SpecInvalid
from core.settings import Settings
from jobs import service
from jobs.admission import pauses, shares
from jobs.lifecycle import sweeps
from jobs.owners import accounts, audit_log, limits, tokens
from jobs.services import Services
from jobs.stages import intake
from storage.tables.jobs import Job
from tests.contract.jobs import request, row

_SPAWN = get_context("fork")


def submit_many(settings: Settings, asked: dict[str, Any], token_id: str, times: int, pictures: int) -> None:
    services = Services(settings)
    with acting("token", token_id):
        for _ in range(times):
            with suppress(LimitReached):
                service.submit(services, asked)
    for number in range(pictures):
        with suppress(LimitReached):
            intake.store_picture(services, "ada", "cat", b"%d of %r" % (number, token_id.encode()))


@pytest.mark.parametrize(("name", "value"), [("jobs_per_day", 5), ("credits_per_day", 7), ("waiting_jobs", 3)])
def test_sixteen_processes_never_exceed_a_limit_of_jobs(
    services: Services, settings: Settings, name: str, value: int
) -> None:
    asked = request(services, max_steps=1000)
    price = service.submit(services, asked).credits.held
    limits.change(services, name, value * (price if name == "credits_per_day" else 1), owner_id="ada")
    pauses.pause(services, "all")
    race(services, settings, asked)
    with services.database.reading() as session:
        jobs = len(session.exec(select(Job.id)).all())
    assert jobs == value
    assert sweeps.run_audit(services) == []


def race(services: Services, settings: Settings, asked: dict[str, Any], times: int = 1, pictures: int = 0) -> None:
    services.database.close()
    children = [
        _SPAWN.Process(target=submit_many, args=(settings, asked, f"token_{number % 2}", times, pictures))
        for number in range(16)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * 16


@pytest.mark.parametrize(("name", "more"), [("pictures", 2), ("bytes_stored", 2 * len(b"0 of b'token_0'"))])
def test_sixteen_processes_never_exceed_a_limit_of_pictures(
    services: Services, settings: Settings, name: str, more: int
) -> None:
    asked = request(services)  # stores five
    most = used(services, name) + more
    limits.change(services, name, most, owner_id="ada")
    race(services, settings, asked, times=0, pictures=2)
    assert used(services, name) == most


def test_sixteen_processes_never_run_more_jobs_than_the_limit(services: Services, settings: Settings) -> None:
    asked = request(services, max_steps=10)
    limits.change(services, "running_jobs", 2, owner_id="ada")
    race(services, settings, asked)
    assert (used(services, "running_jobs"), used(services, "waiting_jobs")) == (2, 14)


def used(services: Services, name: str) -> int:
    return next(view.used for view in limits.list_limits(services, "ada") if view.name == name)


def test_a_refusal_names_the_limit_and_when_it_frees(services: Services) -> None:
    asked = request(services)
    limits.change(services, "jobs_per_day", 1, owner_id="ada")
    first = service.submit(services, asked)
    with pytest.raises(LimitReached, match=r"1 of at most 1 .jobs per day.; it frees at") as refused:
        service.submit(services, asked)
    assert refused.value.details["frees_at"] == (first.created_at + timedelta(days=1)).isoformat()
    assert accounts.balance(services, "ada").held == first.credits.held
    limits.change(services, "jobs_per_day", None, owner_id="ada")
    service.submit(services, asked)


def test_a_token_has_limits_of_its_own(services: Services) -> None:
    asked = request(services)
    _, token = tokens.create(services, "shop", owner_id="ada")
    limits.change(services, "jobs_per_day", 1, token_id=token.id)
    with acting("token", token.id):
        service.submit(services, asked)
        with pytest.raises(LimitReached, match="this token has 1"):
            service.submit(services, asked)
    service.submit(services, asked)
    with pytest.raises(NotFound):
        limits.change(services, "jobs_per_day", 1, token_id="token_none")
    with pytest.raises(SpecInvalid):
        limits.change(services, "pictures", 1, token_id=token.id)


@pytest.mark.parametrize("of", ["owner", "token"])
def test_jobs_beyond_the_limit_of_running_ones_wait(services: Services, of: str) -> None:
    asked = request(services)
    _, token = tokens.create(services, "shop", owner_id="ada")
    whose = {"owner_id": "ada"} if of == "owner" else {"token_id": token.id}
    limits.change(services, "running_jobs", 1, **whose)
    with acting("token", token.id):
        first, second = (service.submit(services, asked).job_id for _ in range(2))
    assert [row(services, job).admitted_at is not None for job in (first, second)] == [True, False]
    service.cancel(services, first)
    assert row(services, second).admitted_at is not None


# ---- the audit log --------------------------------------------------------------------------------------------------


def test_the_log_says_who_did_what(services: Services) -> None:
    with acting("token", "token_1"):
        job_id = service.submit(services, request(services)).job_id
    with acting("command", "root"):
        service.cancel(services, job_id)
        accounts.grant(services, "ada", 5, key="gift")
        limits.change(services, "pictures", 9, owner_id="ada")
        shares.set_weight(services, "ada", 2.0)
        pauses.pause(services, "all", "new drivers")
    found = [(entry.actor, entry.actor_id, entry.action) for entry in audit_log.list_entries(services, owner_id="ada")]
    assert found == [
        ("command", "root", "weight.changed"),
        ("command", "root", "limit.changed"),
        ("command", "root", "credits.granted"),
        ("command", "root", "job.cancelled"),
        ("token", "token_1", "job.accepted"),
        ("service", "", "credits.granted"),
    ]
    [paused] = audit_log.list_entries(services, action="admission.paused")
    assert paused.data == {"scope": "all", "reason": "new drivers"}
    assert [entry.action for entry in audit_log.list_entries(services, job_id=job_id)] == [
        "job.cancelled", "job.accepted"
    ]  # fmt: skip


def test_no_entry_can_be_changed_or_deleted(services: Services) -> None:
    for statement in ("UPDATE audit_entry SET actor = 'nobody'", "DELETE FROM audit_entry"):
        with pytest.raises(sa.exc.IntegrityError, match="append-only"), services.database.writing() as session:
            session.connection().execute(sa.text(statement))
    assert len(audit_log.list_entries(services)) == 1
