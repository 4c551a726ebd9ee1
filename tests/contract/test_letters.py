"""Notices that were given up, and receivers that want none, against a real receiver on loopback."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from core.clock import utcnow
from core.errors import IllegalMove, NotFound
from core.settings import Settings
from jobs.notices import dead_letters, outbox_handlers
from jobs.services import Services
from notifications import outbox, webhooks
from notifications.webhook_payload import PROCESSING, Event, NoticeJob
from tests.servers.receiver import Receiver, receiver

SECRET = "path-that-nobody-may-see"


@pytest.fixture
def gone() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture
def services(address: str, gone: Receiver, tmp_path: Path) -> Iterator[Services]:
    services = Services(
        Settings(_env_file=None, home=tmp_path / "home", database_url=address, fetch_allow_hosts=[gone.address])
    )
    yield services
    services.database.close()


def queue_notice(
    services: Services, job_id: str, url: str, event: Event = "training.completed", owner_id: str = "ada"
) -> str:
    with services.database.writing() as session:
        return webhooks.put(session, NoticeJob(job_id=job_id, owner_id=owner_id), event, url)


def send_due(services: Services) -> None:
    """What the relay and its task do, until nothing is due."""
    while True:
        with services.database.writing() as session:
            messages = outbox.claim(session, utcnow(), ["notice"], lease=timedelta(seconds=60))
        if not messages:
            return
        for message in messages:
            outbox_handlers.notify(services, message.id)


def dead_jobs(services: Services) -> list[str]:
    return sorted(letter.job_id for letter in dead_letters.list_dead_letters(services))


def test_a_receiver_that_is_gone_hears_nothing_until_it_is_enabled_and_then_all_of_it(
    services: Services, gone: Receiver
) -> None:
    url = f"{gone.url}/{SECRET}"
    gone.refuse(410)
    queue_notice(services, "job1", url)
    send_due(services)
    # Later notices are dead letters with that reason; another owner's at the same address are not.
    for number in (2, 3):
        queue_notice(services, f"job{number}", url)
    queue_notice(services, "job4", url, owner_id="bob")
    send_due(services)
    assert [one.content["data"]["training_id"] for one in gone.got] == ["job1", "job4"]
    assert dead_jobs(services) == ["job1", "job2", "job3"]
    assert [letter.reason for letter in dead_letters.list_dead_letters(services)].count(
        "the receiver answered 410"
    ) == 1
    (shown,) = dead_letters.disabled_receivers(services)
    assert (shown.owner_id, shown.receiver) == ("ada", f"http://{gone.address}")
    assert SECRET not in repr([shown, *dead_letters.list_dead_letters(services)])

    # Nobody is called by a redelivery before the receiver is enabled.
    assert dead_letters.redeliver_dead(services) == dead_letters.Redelivery([], 3, 0)
    with pytest.raises(IllegalMove, match="enable it first") as refused:
        dead_letters.redeliver(services, dead_letters.list_dead_letters(services)[0].id)
    assert SECRET not in str(refused.value)
    with pytest.raises(NotFound) as unknown:
        dead_letters.enable_receiver(services, "eve", url)
    assert SECRET not in str(unknown.value)

    assert dead_letters.enable_receiver(services, "ada", f"http://{gone.address}") == 1
    assert dead_letters.disabled_receivers(services) == []
    ids = {letter.job_id: letter.id for letter in dead_letters.list_dead_letters(services)}
    assert set(dead_letters.redeliver_dead(services, receiver=f"http://{gone.address}/").again) == set(ids.values())
    send_due(services)
    assert dead_jobs(services) == []
    # The same messages, under their ids.
    assert {one.content["data"]["training_id"]: one.id for one in gone.got[2:]} == ids


def test_letters_are_sent_again_by_id_by_job_or_by_receiver(services: Services, gone: Receiver) -> None:
    elsewhere = f"http://{gone.address}/other"
    messages = [
        queue_notice(services, job, url) for job, url in (("job1", gone.url), ("job2", gone.url), ("job3", elsewhere))
    ]

    def give_up() -> None:
        with services.database.writing() as session:
            for message_id in messages:
                outbox.redeliver(session, message_id)
                outbox.mark_failed(session, message_id, "the receiver answered 404", None)

    give_up()
    assert dead_letters.redeliver_dead(services, job_id="job2").again == [messages[1]]
    give_up()
    assert dead_letters.redeliver_dead(services, receiver=elsewhere).again == [messages[2]]
    give_up()
    assert dead_letters.redeliver(services, messages[0]).again == [messages[0]]
    assert dead_jobs(services) == ["job2", "job3"]
    give_up()
    assert dead_letters.redeliver_dead(services).again == messages  # oldest first
    send_due(services)
    # What was sent may be sent once more, under the same id.
    dead_letters.redeliver(services, messages[0])
    send_due(services)
    assert [one.id for one in gone.got].count(messages[0]) == 2
    with pytest.raises(NotFound):
        dead_letters.redeliver(services, "msg_none")


def test_a_processing_that_was_given_up_stays_so_once_the_end_was_told(services: Services, gone: Receiver) -> None:
    first = queue_notice(services, "job1", gone.url, PROCESSING)
    with services.database.writing() as session:
        outbox.mark_failed(session, first, "the receiver answered 404", None)
    queue_notice(services, "job1", gone.url)
    assert dead_letters.redeliver_dead(services) == dead_letters.Redelivery([], 0, 1)
    send_due(services)
    assert [one.content["training_status"] for one in gone.got] == ["completed"]
