"""Notices that were given up, and receivers that want none, against a real receiver on loopback."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from core.clock import utcnow
from core.errors import IllegalMove, NotFound
from core.settings import Settings
from jobs import aftermath, letters
from jobs.wiring import House
from notifications import outbox, webhooks
from tests.servers.receiver import Receiver, receiver

SECRET = "path-that-nobody-may-see"


@pytest.fixture
def gone() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture
def house(address: str, gone: Receiver, tmp_path: Path) -> Iterator[House]:
    house = House(
        Settings(_env_file=None, home=tmp_path / "home", database_url=address, fetch_allow_hosts=[gone.address])
    )
    yield house
    house.database.close()


def tell(house: House, job_id: str, url: str, event: str = "training.completed", owner_id: str = "ada") -> str:
    with house.database.writing() as session:
        return webhooks.put(session, {"job_id": job_id, "owner_id": owner_id}, event, url)


def send_due(house: House) -> None:
    """What the relay and its task do, until nothing is due."""
    while True:
        with house.database.writing() as session:
            messages = outbox.claim(session, utcnow(), ["notice"], lease=timedelta(seconds=60))
        if not messages:
            return
        for message in messages:
            aftermath.notify(house, message.id)


def dead_jobs(house: House) -> list[str]:
    return sorted(letter["job_id"] for letter in letters.dead(house))


def test_a_receiver_that_is_gone_hears_nothing_until_it_is_enabled_and_then_all_of_it(
    house: House, gone: Receiver
) -> None:
    url = f"{gone.url}/{SECRET}"
    gone.refuse(410)
    tell(house, "job1", url)
    send_due(house)
    # Later notices are dead letters with that reason; another owner's at the same address are not.
    for number in (2, 3):
        tell(house, f"job{number}", url)
    tell(house, "job4", url, owner_id="bob")
    send_due(house)
    assert [one.told["data"]["training_id"] for one in gone.got] == ["job1", "job4"]
    assert dead_jobs(house) == ["job1", "job2", "job3"]
    assert [letter["reason"] for letter in letters.dead(house)].count("the receiver answered 410") == 1
    (shown,) = letters.disabled_receivers(house)
    assert (shown["owner_id"], shown["receiver"]) == ("ada", f"http://{gone.address}")
    assert SECRET not in json.dumps([shown, *letters.dead(house)])

    # Nobody is called by a redelivery before the receiver is enabled.
    assert letters.redeliver_dead(house) == letters.Redelivery([], 3, 0)
    with pytest.raises(IllegalMove, match="enable it first") as refused:
        letters.redeliver(house, letters.dead(house)[0]["id"])
    assert SECRET not in str(refused.value)
    with pytest.raises(NotFound) as unknown:
        letters.enable_receiver(house, "eve", url)
    assert SECRET not in str(unknown.value)

    assert letters.enable_receiver(house, "ada", f"http://{gone.address}") == 1
    assert letters.disabled_receivers(house) == []
    ids = {letter["job_id"]: letter["id"] for letter in letters.dead(house)}
    assert set(letters.redeliver_dead(house, receiver=f"http://{gone.address}/").again) == set(ids.values())
    send_due(house)
    assert dead_jobs(house) == []
    # The same messages, under their ids.
    assert {one.told["data"]["training_id"]: one.id for one in gone.got[2:]} == ids


def test_letters_are_sent_again_by_id_by_job_or_by_receiver(house: House, gone: Receiver) -> None:
    elsewhere = f"http://{gone.address}/other"
    messages = [tell(house, job, url) for job, url in (("job1", gone.url), ("job2", gone.url), ("job3", elsewhere))]

    def give_up() -> None:
        with house.database.writing() as session:
            for message_id in messages:
                outbox.redeliver(session, message_id)
                outbox.mark_failed(session, message_id, "the receiver answered 404", None)

    give_up()
    assert letters.redeliver_dead(house, job_id="job2").again == [messages[1]]
    give_up()
    assert letters.redeliver_dead(house, receiver=elsewhere).again == [messages[2]]
    give_up()
    assert letters.redeliver(house, messages[0]).again == [messages[0]]
    assert dead_jobs(house) == ["job2", "job3"]
    give_up()
    assert letters.redeliver_dead(house).again == messages  # oldest first
    send_due(house)
    # What was sent may be sent once more, under the same id.
    letters.redeliver(house, messages[0])
    send_due(house)
    assert [one.id for one in gone.got].count(messages[0]) == 2
    with pytest.raises(NotFound):
        letters.redeliver(house, "msg_none")


def test_a_processing_that_was_given_up_stays_so_once_the_end_was_told(house: House, gone: Receiver) -> None:
    first = tell(house, "job1", gone.url, webhooks.PROCESSING)
    with house.database.writing() as session:
        outbox.mark_failed(session, first, "the receiver answered 404", None)
    tell(house, "job1", gone.url)
    assert letters.redeliver_dead(house) == letters.Redelivery([], 0, 1)
    send_due(house)
    assert [one.told["training_status"] for one in gone.got] == ["completed"]
