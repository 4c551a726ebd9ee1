"""Who is told what besides webhooks, on both databases: preferences, credits that run low, alerts in one message."""

import inspect
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from core.clock import utcnow
from core.errors import BackendFailed, ImageInvalid, SpecInvalid
from core.settings import Settings
from jobs import service
from jobs.lifecycle import transitions
from jobs.notices import notices
from jobs.owners import accounts
from jobs.services import Services
from notifications import channels, mail, outbox
from notifications.tables import MESSAGE
from tasks import outbox_tasks
from tasks.arguments import _faults
from tests.contract.jobs import events, messages, request
from tests.outbox import due
from tests.servers.mail import channel, mail_server

LATER = timedelta(days=2)


def waiting(services: Services, kind: str) -> list[Any]:
    with services.database.reading() as session:
        query = sa.select(MESSAGE).where(
            MESSAGE.c.kind == kind, MESSAGE.c.sent_at.is_(None), MESSAGE.c.dead_at.is_(None)
        )
        return list(session.execute(query.order_by(MESSAGE.c.created_at, MESSAGE.c.id)))


def deliver(services: Services) -> None:
    """What the relay and the workers do with mails and alerts, whenever they are due."""
    for _ in range(20):
        with services.database.writing() as session:
            claimed = outbox.claim(session, utcnow() + LATER, ("mail", "alert"), lease=-LATER)
        if not claimed:
            return
        for message in claimed:
            (notices.deliver_mail if message.kind == "mail" else notices.deliver_alerts)(services, message.id)


def test_preferences_are_checked_kept_and_taken_away(services: Services) -> None:
    assert notices.get(services, "ada").email is None
    kept = notices.change(services, "ada", {"email": "ada@example.org", "low_credits": 5})
    assert kept == notices.get(services, "ada")
    assert "training.processing" not in kept.events
    assert notices.change(services, "ada", {"events": ["training.failed"]}).low_credits == 5
    for bad in ("x", "a@b\nBcc: c@d", "a@b, c@d", "<a@b>", "Ada <a@b.example>", "a" * 65 + "@b.example"):
        with pytest.raises(SpecInvalid) as error:
            notices.change(services, "ada", {"email": bad, "events": ["nonsense"], "low_credits": -2})
        assert set(error.value.faults) == {"email", "events", "low_credits"}
    with pytest.raises(SpecInvalid):
        notices.change(services, "ada", {"colour": "red"})
    assert notices.change(services, "ada", {"email": None, "events": None}).email is None


def test_only_wanted_events_are_mailed_and_a_start_is_dropped_for_its_end(services: Services) -> None:
    notices.change(services, "ada", {"email": "ada@example.org", "events": ["training.processing", "training.failed"]})
    job_id = service.submit(services, request(services)).job_id
    with services.database.writing() as session:
        transitions.begin(session, job_id)
    assert [one.topic for one in waiting(services, "mail")] == ["training.processing"]
    with services.database.writing() as session:
        transitions.fail(session, job_id, ImageInvalid("the pictures cannot be read"))
    assert [one.topic for one in waiting(services, "mail")] == ["training.failed"]
    assert waiting(services, "alert") == []  # the request's fault, not ours
    notices.change(services, "ada", {"events": ["training.completed"]})
    deliver(services)  # what is no longer wanted is not sent, and nobody is asked to look at it
    assert waiting(services, "mail") == []
    with services.database.reading() as session:
        assert outbox.dead_letters(session) == []
    assert messages(services, job_id).count("(training.failed)") == 1
    assert events(services, job_id, "leak") == []


def test_low_credits_are_told_once_until_there_were_enough(services: Services) -> None:
    notices.change(services, "ada", {"email": "ada@example.org", "events": ["credits.low"], "low_credits": 951})
    first = service.submit(services, request(services)).job_id
    held = 1000 - accounts.balance(services, "ada").available
    assert held >= 50
    service.submit(services, request(services, seed=2))
    assert [one.topic for one in waiting(services, "mail")] == ["credits.low"]
    accounts.grant(services, "ada", 2000)
    service.cancel(services, first)
    service.submit(services, request(services, seed=3))
    assert len(waiting(services, "mail")) == 1  # there are enough again
    notices.change(services, "ada", {"low_credits": 10_000})
    assert len(waiting(services, "mail")) == 2


def test_a_mail_server_that_is_away_or_absent_costs_only_time(settings: Settings, services: Services) -> None:
    notices.change(services, "ada", {"email": "ada@example.org"})
    accounts_before = accounts.balance(services, "ada")
    service.cancel(services, service.submit(services, request(services)).job_id)
    [message] = waiting(services, "mail")
    notices.deliver_mail(services, message.id)
    [again] = waiting(services, "mail")
    assert (again.attempts, again.last_error) == (1, "no mail server is configured: set IMPRINT_SMTP_URL")
    assert accounts.balance(services, "ada") == accounts_before
    with mail_server() as box:
        up = Services(
            settings.model_copy(update={"smtp_url": SecretStr(box.url), "public_url": "https://imprint.example/"})
        )
        box.refusal = "451 later"
        notices.deliver_mail(up, message.id)
        assert waiting(services, "mail")[0].last_error == "deferred: the mail server refused the mail for now (451)"
        box.refusal = ""
        notices.deliver_mail(up, message.id)
        assert waiting(services, "mail") == []
        assert box.recipients == [["ada@example.org"]]
        assert message.job_id in str(box.got[0].get_body(("plain",)))
        up.database.close()


def test_names_add_no_header_and_no_markup() -> None:
    content = {
        "subject": "rex\r\nBcc: eve@example.org\r\n\r\n<b>x",
        "owner": "<script>",
        "job_id": "job_1",
        "reason": "a\nb",
    }
    drafted = mail.draft("training.failed", mail.MailFacts.parse(content), "https://imprint.example", b"jpeg")
    message = mail.compose(drafted, sender="I <i@example.org>", to="a@b.example", message_id="msg_1", at=utcnow())
    assert message["Bcc"] is None
    assert message["Subject"].startswith("rex Bcc: eve@example.org <b>x: the training failed")
    page = drafted.html()
    assert "<script>" not in page
    assert "<b>" not in page
    assert "src=" not in page
    for paragraph in drafted.paragraphs:
        assert paragraph in drafted.text()


def test_a_storm_of_alerts_is_one_message_to_each_channel(settings: Settings, tmp_path: Path) -> None:
    with channel() as good, channel() as bad:
        bad.works = False
        addresses = [SecretStr(good.url), SecretStr(bad.url)]
        services = Services(settings.model_copy(update={"operator_channels": addresses}))
        services.check()
        accounts.grant(services, "ada", 1000, key="welcome")
        for seed in range(3):
            job_id = service.submit(services, request(services, seed=seed)).job_id
            with services.database.writing() as session:
                transitions.fail(session, job_id, BackendFailed("the machine is broken"))
        with services.database.writing() as session:
            for _ in range(50):
                channels.alert(session, "audit", "audit: something is off")
        notices.deliver_alerts(services, waiting(services, "alert")[0].id)
        for address in {one.destination: one.id for one in waiting(services, "alert")}.values():
            notices.deliver_alerts(services, address)
        [content] = good.got
        assert content["title"] == "Imprint: 53 alerts"
        assert "audit: something is off (50 times)" in content["message"]
        assert content["message"].count("failed: backend_failed") == 3
        # The one that does not work has its attempts, the other is not told twice, and nothing names its address.
        left = waiting(services, "alert")
        assert {one.destination for one in left} == {channels.destination(bad.url)}
        assert "a-secret" not in str(left)
        bad.works = True
        notices.alert(services, "audit", "audit: and again")
        notices.deliver_alerts(
            services, next(one.id for one in waiting(services, "alert") if one.destination == channels.OPERATORS)
        )
        deliver(services)
        assert waiting(services, "alert") == []
        assert [len(good.got), len(bad.got)] == [2, 1]
        services.database.close()


def test_settings_that_cannot_work_are_said_at_the_start(settings: Settings) -> None:
    for update, named in (
        ({"smtp_url": SecretStr("http://x")}, "IMPRINT_SMTP_URL"),
        ({"operator_channels": [SecretStr("nonsense")]}, "IMPRINT_OPERATOR_CHANNELS"),
    ):
        with pytest.raises(ValueError, match=named):
            Services(settings.model_copy(update=update)).check()


def test_a_notice_of_no_job_is_taken_by_its_task() -> None:
    """Why a training did not start by itself is told of a subject, and its message names no job."""
    signature = inspect.signature(outbox_tasks.notify.run)
    assert _faults(signature, (None, "msg_0"), {}) == {}
    assert set(_faults(signature, ("x", None), {})) == {"job_id", "message_id"}


def test_a_mail_server_that_is_down_is_asked_once_a_minute(services: Services) -> None:
    notices.change(services, "ada", {"email": "ada@example.org"})
    for seed in (1, 2, 3):
        service.cancel(services, service.submit(services, request(services, seed=seed)).job_id)
    notices.deliver_mail(services, waiting(services, "mail")[0].id)
    service.cancel(services, service.submit(services, request(services, seed=4)).job_id)
    with services.database.reading() as session:
        assert due(session, utcnow() + timedelta(seconds=3), ["mail"]) == []
        assert len(due(session, utcnow() + timedelta(seconds=70), ["mail"])) == 1


def test_a_deferred_mail_delays_no_other_and_owners_take_turns(settings: Settings, services: Services) -> None:
    """Greylisting is an answer about one recipient. It must not count as a mail server that is down."""
    with mail_server() as box:
        up = Services(settings.model_copy(update={"smtp_url": SecretStr(box.url)}))
        box.deferred = {"ada@example.org"}
        notices.change(services, "ada", {"email": "ada@example.org"})
        for seed in (1, 2, 3):
            service.cancel(services, service.submit(services, request(services, seed=seed)).job_id)
        for _ in range(2):  # the second failure of a server that is down postpones all its mail
            for message in waiting(services, "mail"):
                notices.deliver_mail(up, message.id)
        assert {message.attempts for message in waiting(services, "mail")} == {2}
        notices.change(services, "bob", {"email": "bob@example.org", "low_credits": 5})
        [of_bob] = [message for message in waiting(services, "mail") if message.owner_id == "bob"]
        now = utcnow()
        with services.database.writing() as session:
            # All of ada's are due before bob's, and still both owners have one mail on its way.
            session.execute(sa.update(MESSAGE).where(MESSAGE.c.owner_id == "ada").values(due_at=now - LATER))
        with services.database.writing() as session:
            claimed = outbox.claim(session, now + timedelta(seconds=1), ["mail"], lease=timedelta(seconds=60))
            assert sorted(str(message.owner_id) for message in claimed) == ["ada", "bob"]
            assert outbox.claim(session, now + timedelta(seconds=2), ["mail"], lease=timedelta(seconds=60)) == []
        notices.deliver_mail(up, of_bob.id)
        assert box.recipients == [["bob@example.org"]]
        up.database.close()
