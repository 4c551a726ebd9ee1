"""Services on both databases with an owner who has credits and one accepted job; ways to move and to look at jobs."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kombu.utils.functional
import pytest
import sqlalchemy as sa
from sqlmodel import col, select

from core.settings import Settings
from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import intake
from notifications.tables import OutboxMessage, TaskCall
from storage.tables.jobs import Job, JobPicture, PictureState, Stage
from training.data.decoding.decoder import Decoder

GRANTED = 1000
REQUEST: dict[str, Any] = {"owner_id": "ada", "subject_id": "dog", "base_model": "sd15", "trigger_word": "sks"}


@pytest.fixture
def settings(address: str, tmp_path: Path) -> Settings:
    return Settings(_env_file=None, home=tmp_path / "home", database_url=address, lease_s=30, relaunch_after_s=60)


def make_services(settings: Settings) -> Services:
    """Services that decode pictures in children that the tests of this process share: each takes half a second to
    start.
    """
    services = Services(settings)
    vars(services)["decoder"] = _decoder(settings.max_picture_pixels, settings.max_picture_bytes)
    return services


@cache
def _decoder(max_pixels: int, max_bytes: int) -> Decoder:
    return Decoder(max_pixels=max_pixels, max_bytes=max_bytes)


@pytest.fixture
def services(settings: Settings) -> Iterator[Services]:
    services = make_services(settings)
    accounts.grant(services, "ada", GRANTED, key="welcome")
    yield services
    services.database.close()


def request(services: Services, **changed: Any) -> dict[str, Any]:
    images = [intake.store_picture(services, "ada", "dog", b"picture %d" % number) for number in range(5)]
    return {**REQUEST, "images": images, "webhook_url": "https://app.example", **changed}


@pytest.fixture
def no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests have no broker: Celery asks for it as often as ever, twenty times, but without a second between each."""
    monkeypatch.setattr(kombu.utils.functional, "sleep", lambda _: None)


@pytest.fixture
def job_id(services: Services) -> str:
    found: str = service.submit(services, request(services)).job_id
    return found


def file_of(job_id: str) -> dict[str, Any]:
    """The columns of a job whose file is uploaded."""
    return {"lora_key": f"models/{job_id}/lora_weights.safetensors", "lora_sha256": "ab" * 32}


def put_at(services: Services, job_id: str, stage: Stage, **values: Any) -> None:
    """Bring a job to a stage without the work of those before."""
    if stage is Stage.SETTLE:
        values = file_of(job_id) | values
    with services.database.writing() as session:
        session.execute(sa.update(Job).where(col(Job.id) == job_id).values(stage=stage, status="training", **values))
        done = sa.update(JobPicture).where(col(JobPicture.job_id) == job_id).values(state=PictureState.GOOD)
        session.execute(done)


def row(services: Services, job_id: str) -> Job:
    with services.database.reading() as session:
        return session.get_one(Job, job_id)


def picture(services: Services, job_id: str, position: int = 0) -> JobPicture:
    with services.database.reading() as session:
        return session.get_one(JobPicture, (job_id, position))


def messages(services: Services, job_id: str) -> list[str]:
    """What was put into the outbox for the job, in order; what was given up in brackets."""
    with services.database.reading() as session:
        query = select(OutboxMessage).where(OutboxMessage.job_id == job_id).order_by(col(OutboxMessage.sequence))
        names = [(message.topic or message.kind, message.dead_at) for message in session.exec(query)]
    return [name if dead is None else f"({name})" for name, dead in names]


def events(services: Services, job_id: str, kind: str) -> list[dict[str, Any]]:
    return [event.data for event in service.events(services, job_id) if event.kind == kind]


def balances(services: Services) -> dict[str, int]:
    """What Ada has; the books are in order."""
    assert sweeps.run_audit(services) == []
    found = accounts.balance(services, "ada")
    return {"held": found.held, "spent": found.spent, "available": found.available}


_LINK = {"task": "shop.use", "options": {"queue": "shop"}}
_ERRBACK = {"task": "shop.failed", "options": {}}


def task_call(task_id: str, *, waits: bool = True, **changed: Any) -> TaskCall:
    """An application's Celery task, with two callbacks, an error callback, and a rest of its chain."""
    kept: dict[str, Any] = {"callbacks": [_LINK, _LINK], "errbacks": [_ERRBACK], "chain": [_LINK], "chord": None}
    nothing = dict.fromkeys(("root_id", "parent_id", "group_id", "group_index"))
    return TaskCall(
        task_id=task_id, name="imprint.lora", job_id="", waits=waits, ignore_result=False, **nothing, **kept | changed
    )
