"""`imprint.resolve`: the newest ready LoRA of a subject, or why there is none."""

from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import sqlalchemy as sa
from sqlmodel import col

from core.clock import utcnow
from core.errors import LoraNotReady
from jobs import keys, service
from jobs.owners import accounts
from jobs.services import Services
from jobs.subjects import loras
from storage.tables.jobs import Job, Stage, Status
from tests.contract.jobs import put_at, request


def train(services: Services, minutes_ago: float, status: Status = Status.READY, **changed: Any) -> str:
    """A training that was accepted then, and is now at `status`."""
    job_id = str(service.submit(services, request(services, **changed)).job_id)
    values: dict[str, Any] = {"status": status, "created_at": utcnow() - timedelta(minutes=minutes_ago)}
    if status is Status.READY:
        services.store.put(keys.lora(job_id), job_id.encode())
        values |= {"lora_key": keys.lora(job_id), "lora_sha256": "ab" * 32, "lora_bytes": len(job_id)}
    with services.database.writing() as session:
        session.execute(sa.update(Job).where(col(Job.id) == job_id).values(**values))
    return job_id


def test_the_newest_ready_one_of_the_base_model(services: Services) -> None:
    old = train(services, 50)
    new = train(services, 40, trigger_word="hushpuppy", class_word="dog")
    other = train(services, 30, base_model="sdxl")
    train(services, 20, Status.TRAINING)
    train(services, 10, Status.FAILED)
    train(services, 5, subject_id="cat")
    found = loras.resolve(services, "ada", "dog", "sd15")
    assert found.job_id == new != old
    assert (found.trigger_word, found.class_word, found.strength) == ("hushpuppy", "dog", 1.0)
    assert (found.base_model, found.family, found.file) == ("sd15", "sd15", f"{new}.safetensors")
    assert (found.sha256, found.bytes) == ("ab" * 32, len(new))
    assert Path(unquote(urlsplit(found.url).path)).read_bytes() == new.encode()
    assert loras.resolve(services, "ada", "dog").job_id == other  # of any base model


def test_why_there_is_none(services: Services) -> None:
    accounts.grant(services, "bob", 1000, key="welcome")
    with pytest.raises(LoraNotReady, match="never trained on this base model") as never:
        loras.resolve(services, "ada", "dog", "sd15")
    assert never.value.details == {"status": None}
    failed = train(services, 30, Status.FAILED)
    with services.database.writing() as session:
        session.execute(sa.update(Job).where(col(Job.id) == failed).values(failure_code="out_of_memory"))
    with pytest.raises(LoraNotReady, match=rf"{failed}, has failed \(out_of_memory\)"):
        loras.resolve(services, "ada", "dog")
    train(services, 20, Status.CANCELLED)
    with pytest.raises(LoraNotReady, match=r"was cancelled$"):
        loras.resolve(services, "ada", "dog")
    running = train(services, 10, Status.PENDING)
    put_at(services, running, Stage.TRAIN, step=40, total_steps=500)
    with pytest.raises(LoraNotReady, match=f"{running} has been training for 10 min, at step 40 of 500") as waits:
        loras.resolve(services, "ada", "dog", "sd15")
    assert waits.value.details == {"status": "training", "job_id": running, "stage": "train"}
    with pytest.raises(LoraNotReady, match="never trained"):
        loras.resolve(services, "bob", "dog")
