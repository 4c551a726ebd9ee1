"""What producers give with a request: the id of the model, a reference, and checkpoints to keep."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session, col, select

from core.clock import utcnow
from core.errors import NotFound, SpecInvalid
from core.settings import Settings
from jobs import checkpoints, keys, service
from jobs.lifecycle import transitions
from jobs.notices import outbox_handlers
from jobs.requests.envelope import Origin
from jobs.services import Services
from jobs.stages import stage_runner, steps
from jobs.stages.control import StoredLoras
from jobs.stages.stage_runner import claim
from jobs.subjects import subject_settings
from notifications import outbox, webhooks
from notifications.tables import OutboxMessage
from notifications.webhook_payload import FileAddresses, NoticeFile, NoticeJob
from storage.objects.s3 import S3Store
from storage.tables.jobs import Stage
from tests.contract.jobs import events, put_at, request, row
from tests.contract.processes import at_once
from tests.servers.launcher import run
from tests.site import ROOT


def sent(services: Services, topic: str) -> list[tuple[str, dict[str, Any]]]:
    """Where the notices of a topic go, and what they say, as the worker would send them."""
    with services.database.reading() as session:
        query = select(OutboxMessage).where(OutboxMessage.topic == topic, OutboxMessage.kind == "notice")
        rows = session.exec(query.order_by(col(OutboxMessage.created_at))).all()
        found = [message for row in rows if (message := outbox.find(session, row.id))]
    calls: list[tuple[str, dict[str, Any]]] = []

    def send(method: str, url: str, content: bytes, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str]]:
        calls.append((url, json.loads(content)))
        return 200, {}

    for message in found:
        addresses = outbox_handlers.file_addresses(services, webhooks.notice_of(message).job)
        webhooks.deliver(message, send, utcnow(), addresses=addresses)
    return calls


def uploaded(services: Services, job_id: str) -> str:
    """Bring a job to its end with a file; the file's key."""
    key = keys.lora(row(services, job_id).public_model_id)
    services.store.put(key, b"a file")
    put_at(services, job_id, Stage.SETTLE, lora_key=key, step=500)
    steps.settle(services, job_id)
    return key


# ---- the id of the model ----


def test_a_given_model_id_is_the_one_of_webhooks_and_of_the_file(services: Services) -> None:
    view = service.submit(services, request(services, model_id=17, reference={"order": 4}), Origin("m-1", 4711))
    assert (view.model_id, view.reference) == ("17", {"order": 4})
    key = uploaded(services, view.job_id)
    assert key == "models/17/lora_weights.safetensors"
    [(url, content)] = sent(services, "training.completed")
    assert url == "https://app.example/api/models/17/status"
    assert content["model_path"] == services.store.uri(key)
    assert Path(content["model_path"].removeprefix("file://")).read_bytes() == b"a file"
    assert "model_url" not in content
    given = {
        "training_id": view.job_id, "model_id": "17", "owner_id": "ada", "subject_id": "dog", "style_id": 4711,
        "message_id": "m-1", "reference": {"order": 4},
    }  # fmt: skip
    assert given.items() <= content["data"].items()
    assert content["data"]["artifact"]["key"] == key


def test_without_one_it_is_the_id_of_the_job(services: Services, job_id: str) -> None:
    view = service.get(services, job_id)
    assert (view.model_id, view.reference) == (job_id, None)
    assert uploaded(services, job_id) == f"models/{job_id}/lora_weights.safetensors"
    [(url, content)] = sent(services, "training.completed")
    assert url == f"https://app.example/api/models/{job_id}/status"
    assert not {"reference", "message_id", "style_id", "idempotency_key"} & content["data"].keys()


@pytest.mark.parametrize(("key", "shown"), [("k", "k"), ("http:k", "k"), ("model_training:m-1", "m-1")])
def test_the_key_comes_back_without_the_prefix_of_its_door(services: Services, key: str, shown: str) -> None:
    view = service.submit(services, request(services, idempotency_key=key))
    service.cancel(services, view.job_id)
    [(_, content)] = sent(services, "training.cancelled")
    assert content["data"]["idempotency_key"] == shown


def test_a_model_id_belongs_to_one_training_whatever_its_end(services: Services) -> None:
    first = service.submit(services, request(services, model_id="a", idempotency_key="k"))
    assert service.submit(services, request(services, model_id="a", idempotency_key="k")).job_id == first.job_id
    for arguments in (request(services, model_id="a"), request(services, model_id="a", subject_id="cat")):
        with pytest.raises(SpecInvalid) as refused:
            service.submit(services, arguments)
        assert refused.value.faults == {"model_id": "a is taken by another training; each needs an id of its own"}
    service.cancel(services, first.job_id)
    with pytest.raises(SpecInvalid):
        service.submit(services, request(services, model_id="a"))
    again = service.retry(services, first.job_id)
    assert again.model_id == again.job_id


def test_of_two_at_once_one_gets_the_model_id(services: Services, settings: Settings, address: str) -> None:
    arguments = request(services, model_id="a")

    def submit(_: Session) -> list[str]:
        own = Services(settings)
        try:
            service.submit(own, arguments)
        except SpecInvalid as error:
            return list(error.faults)
        finally:
            own.database.close()
        return []

    assert sorted(at_once(f"sqlite:///{settings.home}/elsewhere.db", [submit] * 6)) == [[], *[["model_id"]] * 5]


def test_a_retry_returns_the_reference_and_the_style(services: Services) -> None:
    first = service.submit(services, request(services, reference={"order": 4}, model_link=True), Origin("m-1", 4711))
    service.cancel(services, first.job_id)
    again = service.retry(services, first.job_id)
    kept = row(services, again.job_id)
    assert (kept.reference, kept.message_id, kept.style_id, kept.model_link) == ({"order": 4}, "m-1", 4711, True)


def test_a_presigned_address_comes_on_request_and_is_made_for_each_attempt(services: Services) -> None:
    services.__dict__["store"] = S3Store(
        bucket="loras", prefix="imprint", endpoint_url="http://127.0.0.1:9", access_key_id="key",
        secret_access_key="secret",
    )  # fmt: skip
    job = NoticeJob(lora=NoticeFile(key="models/17/lora_weights.safetensors"), model_link=True)
    addresses = outbox_handlers.file_addresses(services, job)
    assert addresses is not None
    assert addresses.uri == "s3://loras/imprint/models/17/lora_weights.safetensors"
    assert "X-Amz-Expires=86400" in (addresses.link or "")
    plain = outbox_handlers.file_addresses(services, job.model_copy(update={"model_link": False}))
    assert plain == FileAddresses(addresses.uri)
    assert outbox_handlers.file_addresses(services, NoticeJob()) is None


def test_what_is_about_a_subject_goes_to_the_subject(services: Services) -> None:
    subject_settings.change(services, "ada", "rex/1", {"webhook_url": "https://app.example/x"})
    subject_settings.profile_set_completed(services, "ada", "rex/1")
    [(url, content)] = sent(services, "training.not_started")
    assert url == "https://app.example/x/api/subjects/rex%2F1/status"
    assert (content["data"]["subject_id"], content["data"]["owner_id"]) == ("rex/1", "ada")
    assert "model_id" not in content["data"]


# ---- checkpoints that are kept ----


def test_the_commands_show_and_copy_them(services: Services, settings: Settings, tmp_path: Path) -> None:
    job_id = service.submit(services, request(services, keep_checkpoints=True)).job_id
    kept(services, job_id, 50)
    environment = {
        "IMPRINT_HOME": str(settings.home), "IMPRINT_DATABASE_URL": settings.database, "PATH": "/usr/bin:/bin"
    }  # fmt: skip

    def imprint(*arguments: str) -> str:
        command = ["celery", "-A", "tasks.app", "imprint", *arguments]
        done = run(command, cwd=ROOT, env=environment, folder=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"checkpoint of step 50  models/{job_id}/checkpoints/00000050.safetensors" in imprint("status", job_id)
    assert json.loads(imprint("status", job_id, "--json"))["checkpoints"][0]["step"] == 50
    imprint("download", job_id, str(tmp_path / "50.safetensors"), "--checkpoint", "50")
    assert (tmp_path / "50.safetensors").read_bytes() == b"after 50"


def kept(services: Services, job_id: str, *steps_done: int) -> None:
    """What a worker keeps after these steps."""
    put_at(services, job_id, Stage.TRAIN)
    lease, job = claim(services, job_id, Stage.TRAIN)
    store = StoredLoras(services.store, services.database, lease, job.public_model_id)
    for step in steps_done:
        store.save(step, b"after %d" % step)


def test_kept_checkpoints_are_listed_and_downloaded(services: Services, tmp_path: Path) -> None:
    view = service.submit(services, request(services, model_id="17", checkpoint_every=1, keep_checkpoints=True))
    assert (view.spec.checkpoint_every, view.spec.keep_checkpoints) == (1, True)
    kept(services, view.job_id, 5, 10, 5)  # step 5 twice: the worker died after step 10 was kept
    found = checkpoints.kept(services, view.job_id)
    assert [(one.step, one.key) for one in found] == [
        (5, "models/17/checkpoints/00000005.safetensors"), (10, "models/17/checkpoints/00000010.safetensors"),
    ]  # fmt: skip
    assert len(events(services, view.job_id, "checkpoint")) == 3
    file = checkpoints.download(services, view.job_id, 10, tmp_path / "10.safetensors")
    assert ((tmp_path / "10.safetensors").read_bytes(), file.bytes) == (b"after 10", 8)
    for step, owner in ((7, None), (10, "bob")):
        with pytest.raises(NotFound):
            checkpoints.get(services, view.job_id, step, owner)


@pytest.mark.parametrize(("end", "left"), [("ready", 1), ("cancelled", 1), ("failed", 0)])
def test_they_stay_unless_the_training_failed(services: Services, end: str, left: int) -> None:
    job_id = service.submit(services, request(services, keep_checkpoints=True)).job_id
    kept(services, job_id, 50)
    if end == "ready":
        uploaded(services, job_id)
    elif end == "cancelled":
        service.cancel(services, job_id)
    else:
        with services.database.writing() as session:
            transitions.fail(session, job_id, SpecInvalid("for a test"))
    stage_runner.clean_up(services, job_id)
    assert len(list(services.store.list(keys.kept_loras(job_id)))) == left
    assert len(checkpoints.kept(services, job_id)) == left


def test_a_remote_server_keeps_none_and_the_request_says_so(services: Services) -> None:
    with pytest.raises(SpecInvalid) as refused:
        service.submit(services, request(services, keep_checkpoints=True, backend="ai-toolkit"))
    assert "ai-toolkit keeps no checkpoints" in refused.value.faults["keep_checkpoints"]
