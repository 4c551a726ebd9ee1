"""Webhooks through the real workers to a real receiver: in order, signed, once more when refused, under one id."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from standardwebhooks.webhooks import WebhookVerificationError

from core.clock import utcnow
from credits import ledger
from jobs import service
from jobs.lifecycle import sweeps
from jobs.owners import accounts
from jobs.stages import intake
from notifications.outbox import dead_letters
from notifications.tables import MESSAGE
from tests.servers.receiver import Receiver, receiver
from tests.site import Site, site, until

SECRET = "whsec_" + "C" * 40
Running = tuple[Site, Receiver, Receiver]  # the second receiver is one that other tests do not call


@pytest.fixture(scope="module")
def running(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("webhooks")
    with receiver() as application, receiver() as down:
        environment = {
            "IMPRINT_WEBHOOK_SECRET": SECRET,
            "IMPRINT_FETCH_ALLOW_HOSTS": json.dumps([application.address, down.address]),
            "IMPRINT_PRICES": json.dumps({"sd15": 64_000}),  # one credit for a step at 64 pixels
        }
        with site(folder, base_model, **environment) as made:
            yield made, application, down


@pytest.fixture
def owner(running: Running) -> str:
    name = f"owner-{secrets.token_hex(4)}"
    running[0].grant(name)
    return name


def waiting(site: Site, job_id: str) -> int:
    """How many notices of the job were neither sent nor given up."""
    with site.services.database.reading() as session:
        notices = sa.select(sa.func.count()).where(
            MESSAGE.c.job_id == job_id,
            MESSAGE.c.kind == "notice",
            MESSAGE.c.sent_at.is_(None),
            MESSAGE.c.dead_at.is_(None),
        )
        return int(session.execute(notices).scalar_one())


def given_up(site: Site) -> list[str | None]:
    with site.services.database.reading() as session:
        return [message.job_id for message in dead_letters(session)]


def make_due(site: Site, job_id: str) -> None:
    """Let the time pass until the next attempt: the schedule itself has tests of its own."""
    with site.services.database.writing() as session:
        refused = sa.and_(MESSAGE.c.job_id == job_id, MESSAGE.c.kind == "notice", MESSAGE.c.attempts > 0)
        session.execute(sa.update(MESSAGE).where(refused).values(due_at=utcnow()))


def test_processing_then_completed_signed_and_in_order_though_the_first_is_refused(
    running: Running, owner: str
) -> None:
    site, application, _ = running
    application.refuse(500)
    # Long enough for `processing` to be on its way before it is overtaken.
    job_id = site.send(owner_id=owner, webhook_url=application.url, max_steps=150)["job_id"]
    until(lambda: len(application.about(job_id)) > 0, 60, "the first notice")
    assert application.about(job_id)[0].answered == 500
    # The final notice waits for the first one, which is due again after five seconds; unless it overtook it.
    until(lambda: any(one.content["training_status"] == "completed" for one in application.about(job_id)), 60, "told")
    until(lambda: waiting(site, job_id) == 0, 60, "all were sent")
    view = site.wait(job_id)
    got = application.about(job_id)

    assert {(one.method, one.path) for one in got} == {("PATCH", f"/app/api/models/{job_id}/status")}
    statuses = [one.content["training_status"] for one in got]
    assert statuses == sorted(statuses, key=["processing", "completed"].index), "in order"
    assert (statuses[0], statuses[-1]) == ("processing", "completed")
    # The same message, the same id; another attempt, another signature of its own second.
    assert len({one.id for one in got}) == len(set(statuses))
    for one in got:
        assert one.verified(SECRET)["data"]["training_id"] == job_id
        with pytest.raises(WebhookVerificationError):
            one.verified("whsec_" + "D" * 40)
    completed = got[-1].content
    assert completed["model_path"] == site.services.store.uri(view["lora"]["key"])
    assert completed["data"]["artifact"] == view["lora"]
    assert completed["data"]["credits"]["charged"] == view["credits"]["charged"]
    sequences = [one.content["data"]["sequence"] for one in got]
    assert sequences == sorted(sequences)


def test_a_refused_final_notice_comes_again_under_the_same_id(running: Running, owner: str) -> None:
    site, application, _ = running
    job_id = site.send(owner_id=owner, webhook_url=application.url, max_steps=9_000)["job_id"]
    # Its pictures were prepared for the job before: there is nothing to preprocess, and it begins all the same.
    site.wait(job_id, lambda view: view["step"] > 0)
    until(lambda: len(application.about(job_id)) == 1, 60, "processing")
    application.refuse(503, 429)
    service.cancel(site.services, job_id)
    for attempts in (2, 3, 4):

        def came_again(attempts: int = attempts) -> bool:
            make_due(site, job_id)
            return len(application.about(job_id)) >= attempts

        until(came_again, 60, f"attempt {attempts - 1}")
    until(lambda: waiting(site, job_id) == 0, 60, "sent")
    processing, *failed = application.about(job_id)
    assert processing.content["training_status"] == "processing"
    assert [(one.answered, one.content["training_status"]) for one in failed] == [
        (503, "failed"), (429, "failed"), (204, "failed")
    ]  # fmt: skip
    assert len({one.id for one in failed}) == 1
    assert len({one.body for one in failed}) == 1
    assert failed[0].verified(SECRET)["data"]["failure_code"] == "cancelled"
    # The steps done are charged, the rest came back; the notice, the view and the books say the same.
    view = site.view(job_id)
    assert 0 < view["credits"]["charged"] == view["step"] < 9_000
    assert view["credits"] == {"held": 0, "charged": view["step"], "refunded": 9_000 - view["step"]}
    assert failed[0].content["data"]["credits"] == view["credits"]
    assert accounts.balance(site.services, owner).spent == view["step"]
    assert sweeps.run_audit(site.services) == []


def test_a_failing_job_is_told_with_its_code_and_the_credits_that_came_back(running: Running, owner: str) -> None:
    site, application, _ = running
    poison = [intake.store_picture(site.services, owner, "m", b"poison %d" % number) for number in range(2)]
    images = [*site.pictures(owner, 4), *poison]
    accepted = site.send(owner_id=owner, images=images, webhook_url=application.url)
    site.wait(accepted["job_id"])
    until(lambda: waiting(site, accepted["job_id"]) == 0, 60, "sent")
    last = application.about(accepted["job_id"])[-1].verified(SECRET)
    assert (last["training_status"], last["type"]) == ("failed", "training.failed")
    assert last["data"]["failure_code"] == "too_few_images"
    assert last["data"]["retryable"] is False
    assert "picture 5: unreadable" in last["failure_reason"]
    assert last["data"]["credits"] == {"held": 0, "charged": 0, "refunded": accepted["credits"]["held"]}


def poison(site: Site, owner: str, name: str) -> list[str]:
    """Files that are no pictures: a job of them fails at once."""
    return [intake.store_picture(site.services, owner, "m", f"{name} {owner} {number}".encode()) for number in range(5)]


def test_a_receiver_that_wants_no_more_hears_no_more_until_an_operator_enables_it(running: Running, owner: str) -> None:
    site, application, _ = running
    url = f"{application.url}/a-secret-path"
    application.refuse(410)
    first = site.send(owner_id=owner, images=poison(site, owner, "worse"), webhook_url=url)["job_id"]
    site.wait(first)
    until(lambda: len(application.about(first)) == 1, 60, "refused for good")
    until(lambda: first in given_up(site), 60, "given up")
    until(lambda: waiting(site, first) == 0, 60, "nothing waits for a receiver that is gone")
    second = site.send(owner_id=owner, images=poison(site, owner, "worst"), webhook_url=url)["job_id"]
    site.wait(second)
    until(lambda: second in given_up(site) and waiting(site, second) == 0, 60, "not sent, and said so")
    assert application.about(second) == []

    letters, receivers = site.imprint("letters").stdout, site.imprint("receivers").stdout
    assert second in letters
    assert owner in receivers
    assert f"http://{application.address}" in receivers
    assert "a-secret-path" not in letters + receivers
    site.imprint("receivers", "enable", owner, f"http://{application.address}")
    again = json.loads(site.imprint("redeliver", "--job", second, "--json").stdout)["again"]
    until(lambda: waiting(site, second) == 0, 60, "sent again")
    assert [one.id for one in application.about(second)] == again
    assert application.about(second)[-1].verified(SECRET)["type"] == "training.failed"
    assert "a-secret-path" not in "".join(log.read_text() for log in site.folder.glob("*.log"))


@pytest.mark.drawn
def test_an_endless_500_of_one_receiver_slows_nobody_else(running: Running, owner: str) -> None:
    """One worker process for all notices, twelve jobs that tell a receiver which takes seconds to say 500."""
    site, application, down = running
    down.always, down.slow_s = 500, 1.5
    asked = [
        site.send(owner_id=owner, images=poison(site, owner, f"bad {number}"), webhook_url=down.url)["job_id"]
        for number in range(12)
    ]
    for job_id in asked:
        site.wait(job_id)
    until(lambda: len(down.got) >= 6, 120, "the one that is down is asked")
    mine = site.send(owner_id=owner, images=poison(site, owner, "mine"), webhook_url=application.url)["job_id"]
    site.wait(mine)
    before = len(down.got)
    until(lambda: waiting(site, mine) == 0, 60, "told while the other one is down")
    assert application.about(mine)[-1].content["training_status"] == "failed"
    assert len(down.got) - before <= 3, "its notices waited for those of a receiver that is down"
    # Nothing is lost meanwhile: all of them wait for their next attempt, and come when it is up again.
    assert all(waiting(site, job_id) > 0 for job_id in asked)
    down.always, down.slow_s = None, 0

    def all_told() -> bool:
        for job_id in asked:
            make_due(site, job_id)
        return all(waiting(site, job_id) == 0 for job_id in asked)

    until(all_told, 120, "told at last", every_s=0.5)
    assert {one.content["data"]["training_id"] for one in down.got if one.answered == 204} == set(asked)


@pytest.mark.drawn
def test_a_late_success_is_delivered_charged_nothing_and_counted_as_a_leak(running: Running, owner: str) -> None:
    """The hold is over, by the operator's clock, while the training still goes on."""
    site, application, _ = running
    job_id = site.send(owner_id=owner, webhook_url=application.url, max_steps=100)["job_id"]
    site.wait(job_id, lambda view: view["step"] > 0)
    with site.services.database.writing() as session:
        hold = ledger.hold_of(session, job_id)
        assert hold is not None
        ledger.expire(session, hold.id)
    view = site.wait(job_id)
    assert (view["status"], view["credits"]) == ("ready", {"held": 0, "charged": 0, "refunded": 100})
    site.services.store.get(view["lora"]["key"])
    until(lambda: waiting(site, job_id) == 0, 60, "told")
    assert application.about(job_id)[-1].content["data"]["credits"]["charged"] == 0
    content = json.loads(site.imprint("audit", "--json").stdout)
    assert content["ok"] is True
    assert (content["leaks"]["count"], content["leaks"]["credits"]) == (1, 100)
    assert content["leaks"]["jobs"][0]["job_id"] == job_id
    # The hourly task alerts: an error in the log that monitoring watches.
    site.application.send_task("imprint.audit", queue="io")
    alerts = site.settings.log_dir / "errors.jsonl"
    until(lambda: "leak: 1 training(s)" in alerts.read_text(), 60, "the alert")
