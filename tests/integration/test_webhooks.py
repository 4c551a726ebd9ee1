"""Webhooks through the real workers to a real receiver: in order, signed, once more when refused, under one id."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from standardwebhooks.webhooks import WebhookVerificationError

from core.clock import utcnow
from jobs import intake, service
from notifications.outbox import dead_letters
from notifications.tables import MESSAGE
from tests.servers.receiver import Receiver, receiver
from tests.site import Site, site, until

SECRET = "whsec_" + "C" * 40


@pytest.fixture(scope="module")
def running(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Receiver]]:
    folder = tmp_path_factory.mktemp("webhooks")
    with receiver() as application:
        environment = {
            "IMPRINT_WEBHOOK_SECRET": SECRET,
            "IMPRINT_FETCH_ALLOW_HOSTS": json.dumps([application.address]),
        }
        with site(folder, base_model, **environment) as made:
            yield made, application


@pytest.fixture
def owner(running: tuple[Site, Receiver]) -> str:
    name = f"owner-{secrets.token_hex(4)}"
    running[0].grant(name)
    return name


def waiting(site: Site, job_id: str) -> int:
    """How many notices of the job were neither sent nor given up."""
    with site.house.database.reading() as session:
        notices = sa.select(sa.func.count()).where(
            MESSAGE.c.job_id == job_id,
            MESSAGE.c.kind == "notice",
            MESSAGE.c.sent_at.is_(None),
            MESSAGE.c.dead_at.is_(None),
        )
        return int(session.execute(notices).scalar_one())


def given_up(site: Site) -> list[str | None]:
    with site.house.database.reading() as session:
        return [message.job_id for message in dead_letters(session)]


def make_due(site: Site, job_id: str) -> None:
    """Let the time pass until the next attempt: the schedule itself has tests of its own."""
    with site.house.database.writing() as session:
        refused = sa.and_(MESSAGE.c.job_id == job_id, MESSAGE.c.kind == "notice", MESSAGE.c.attempts > 0)
        session.execute(sa.update(MESSAGE).where(refused).values(due_at=utcnow()))


def test_processing_then_completed_signed_and_in_order_though_the_first_is_refused(
    running: tuple[Site, Receiver], owner: str
) -> None:
    site, application = running
    application.refuse(500)
    # Long enough for `processing` to be on its way before it is overtaken.
    job_id = site.send(owner_id=owner, webhook_url=application.url, max_steps=150)["job_id"]
    until(lambda: len(application.about(job_id)) > 0, 60, "the first notice")
    assert application.about(job_id)[0].answered == 500
    # The final notice waits for the first one, which is due again after five seconds; unless it overtook it.
    until(lambda: any(one.told["training_status"] == "completed" for one in application.about(job_id)), 60, "told")
    until(lambda: waiting(site, job_id) == 0, 30, "all were sent")
    view = site.wait(job_id)
    got = application.about(job_id)

    assert {(one.method, one.path) for one in got} == {("PATCH", f"/app/api/models/{job_id}/status")}
    statuses = [one.told["training_status"] for one in got]
    assert statuses == sorted(statuses, key=["processing", "completed"].index), "in order"
    assert (statuses[0], statuses[-1]) == ("processing", "completed")
    # The same message, the same id; another attempt, another signature of its own second.
    assert len({one.id for one in got}) == len(set(statuses))
    for one in got:
        assert one.verified(SECRET)["data"]["training_id"] == job_id
        with pytest.raises(WebhookVerificationError):
            one.verified("whsec_" + "D" * 40)
    completed = got[-1].told
    assert completed["model_path"] == view["lora"]["key"]
    assert completed["data"]["artifact"] == {"sha256": view["lora"]["sha256"], "bytes": view["lora"]["bytes"]}
    assert completed["data"]["credits"]["charged"] == view["credits"]["charged"]
    sequences = [one.told["data"]["sequence"] for one in got]
    assert sequences == sorted(sequences)


def test_a_refused_final_notice_comes_again_under_the_same_id(running: tuple[Site, Receiver], owner: str) -> None:
    site, application = running
    job_id = site.send(owner_id=owner, webhook_url=application.url, max_steps=100_000)["job_id"]
    # Its pictures were prepared for the job before: there is nothing to preprocess, and it begins all the same.
    site.wait(job_id, lambda view: view["step"] > 0)
    until(lambda: len(application.about(job_id)) == 1, 30, "processing")
    application.refuse(503, 429)
    service.cancel(site.house, job_id)
    for attempts in (2, 3, 4):

        def came_again(attempts: int = attempts) -> bool:
            make_due(site, job_id)
            return len(application.about(job_id)) >= attempts

        until(came_again, 30, f"attempt {attempts - 1}")
    until(lambda: waiting(site, job_id) == 0, 30, "sent")
    processing, *failed = application.about(job_id)
    assert processing.told["training_status"] == "processing"
    assert [(one.answered, one.told["training_status"]) for one in failed] == [
        (503, "failed"), (429, "failed"), (204, "failed")
    ]  # fmt: skip
    assert len({one.id for one in failed}) == 1
    assert len({one.body for one in failed}) == 1
    assert failed[0].verified(SECRET)["data"]["failure_code"] == "cancelled"
    assert failed[0].told["data"]["credits"] == {
        "held": 0, "charged": 0, "refunded": site.look(job_id)["credits"]["refunded"]
    }  # fmt: skip


def test_a_failing_job_is_told_with_its_code_and_the_credits_that_came_back(
    running: tuple[Site, Receiver], owner: str
) -> None:
    site, application = running
    poison = [intake.store_picture(site.house, owner, "m", b"poison %d" % number) for number in range(2)]
    images = [*site.pictures(owner, 4), *poison]
    accepted = site.send(owner_id=owner, images=images, webhook_url=application.url)
    site.wait(accepted["job_id"])
    until(lambda: waiting(site, accepted["job_id"]) == 0, 30, "sent")
    last = application.about(accepted["job_id"])[-1].verified(SECRET)
    assert (last["training_status"], last["type"]) == ("failed", "training.failed")
    assert last["data"]["failure_code"] == "too_few_images"
    assert last["data"]["retryable"] is False
    assert "picture 4: unreadable" in last["failure_reason"]
    assert last["data"]["credits"] == {"held": 0, "charged": 0, "refunded": accepted["credits"]["held"]}


def test_a_receiver_that_wants_no_more_hears_no_more(running: tuple[Site, Receiver], owner: str) -> None:
    site, application = running
    poison = [intake.store_picture(site.house, owner, "m", b"worse %d" % number) for number in range(5)]
    application.refuse(410)
    job_id = site.send(owner_id=owner, images=poison, webhook_url=application.url)["job_id"]
    site.wait(job_id)
    until(lambda: len(application.about(job_id)) == 1, 30, "refused for good")
    until(lambda: job_id in given_up(site), 20, "given up")
    until(lambda: waiting(site, job_id) == 0, 20, "nothing waits for a receiver that is gone")
