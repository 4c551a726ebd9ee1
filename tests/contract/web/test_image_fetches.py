"""Pictures by address: accepted at once, fetched by a worker, read by polling."""

import io
from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from PIL import Image
from sqlmodel import col, select

from core.clock import utcnow
from core.settings import Settings
from jobs.subjects import image_fetches
from jobs.turns import RetryLater
from notifications import outbox
from storage.tables.fetches import StoredImageFetch
from tasks import relay
from tests.contract.web.conftest import REX, Api, make_api, problem
from tests.servers.pictures import PictureServer, picture_server
from tests.site import MASCOT


@pytest.fixture
def files() -> Iterator[PictureServer]:
    with picture_server() as server:
        yield server


@pytest.fixture
def calling(settings: Settings, files: PictureServer) -> Iterator[Api]:
    """An app that may call the server of pictures."""
    yield from make_api(settings.model_copy(update={"fetch_allow_hosts": [files.address], "fetches_per_owner": 2}))


def mascot(files: PictureServer, number: int) -> str:
    return files.put(f"/{number}.png", sorted(MASCOT.glob("*.png"))[number].read_bytes())


def launched(api: Api) -> list[str]:
    """The fetches that the relay would hand to a worker, each as the message of its task."""
    with api.services.database.writing() as session:
        messages = outbox.claim(session, utcnow() + timedelta(seconds=1), ["launch"], lease=timedelta(seconds=60))
        for message in messages:
            outbox.mark_sent(session, message.id)
    names = [relay._signature(message) for message in messages]
    assert {name for name, _ in names} <= {"imprint.fetch_images"}
    return [str(arguments[0]) for _, arguments in names]


def test_accepted_at_once_fetched_by_a_worker_and_read_by_polling(calling: Api, files: PictureServer) -> None:
    ada = calling.token("ada")
    noise = files.put("/noise", b"no picture")
    urls = [mascot(files, 0), noise, "http://10.0.0.1/private.png", mascot(files, 1), mascot(files, 0)]
    answer = calling.call("POST", f"{REX}/images", ada, json={"urls": urls})
    assert answer.status_code == 202, answer.text
    content = answer.json()
    assert files.asked == {}  # nothing is fetched in the web process
    assert (content["status"], content["waiting"], content["images"]) == ("waiting", 4, [])
    assert [(one["index"], one["code"]) for one in content["refused"]] == [(2, "image_unreachable")]
    assert answer.headers["location"] == content["url"]
    assert calling.call("GET", content["url"], ada).json() == content

    [fetch_id] = launched(calling)
    assert fetch_id == content["id"]
    image_fetches.fetch_images(calling.services, fetch_id)
    done = calling.call("GET", content["url"], ada).json()
    assert (done["status"], done["waiting"]) == ("done", 0)
    assert len(done["images"]) == 2  # the same picture twice is one
    assert [(one["index"], one["code"]) for one in done["refused"]] == [
        (1, "image_invalid"), (2, "image_unreachable")
    ]  # fmt: skip
    listed = calling.call("GET", f"{REX}/lora/available-images", ada).json()
    assert [image["id"] for image in listed["images"]] == [image["id"] for image in done["images"]]
    asked = dict(files.asked)
    image_fetches.fetch_images(calling.services, fetch_id)  # a message that came twice
    assert files.asked == asked
    with calling.services.database.reading() as session:
        assert session.get_one(StoredImageFetch, fetch_id).addresses == []  # they may be presigned
    problem(calling.call("GET", content["url"], calling.token("bob")), 404, "not_found")
    problem(calling.call("GET", content["url"].replace("rex", "tom"), ada), 404, "not_found")


def test_masks_come_by_address_too(calling: Api, files: PictureServer) -> None:
    ada = calling.token("ada")
    white = io.BytesIO()
    Image.new("L", (512, 512), 255).save(white, "PNG")
    url = files.put("/mask.png", white.getvalue())
    content = calling.call("POST", f"{REX}/images?masks=true", ada, json={"url": url}).json()
    image_fetches.fetch_images(calling.services, *launched(calling))
    [mask] = calling.call("GET", content["url"], ada).json()["images"]
    assert mask["verdict"] == "good"
    assert calling.call("GET", f"{REX}/lora/available-images", ada).json()["images"] == []


def test_an_owner_has_few_that_are_not_done(calling: Api, files: PictureServer) -> None:
    ada, bob = calling.token("ada"), calling.token("bob")
    for _ in range(2):
        assert calling.call("POST", f"{REX}/images", ada, json={"url": mascot(files, 0)}).status_code == 202
    refused = calling.call("POST", f"{REX}/images", ada, json={"url": mascot(files, 0)})
    problem(refused, 429, "rate_limited")
    assert refused.headers["retry-after"]
    assert calling.call("POST", f"{REX}/images", bob, json={"url": mascot(files, 0)}).status_code == 202
    for fetch_id in launched(calling):
        image_fetches.fetch_images(calling.services, fetch_id)
    assert calling.call("POST", f"{REX}/images", ada, json={"url": mascot(files, 1)}).status_code == 202


def test_one_time_limit_holds_for_all_addresses_of_a_request(calling: Api, files: PictureServer) -> None:
    ada = calling.token("ada")
    content = calling.call("POST", f"{REX}/images", ada, json={"urls": [mascot(files, 0), mascot(files, 1)]}).json()
    hurried = calling.services.settings.model_copy(update={"fetch_images_s": 1e-9})
    object.__setattr__(calling.services, "settings", hurried)
    image_fetches.fetch_images(calling.services, *launched(calling))
    done = calling.call("GET", content["url"], ada).json()
    assert done["status"] == "done"
    assert ["took more than" in one["detail"] for one in done["refused"]] == [True, True]
    assert files.asked == {}


def test_what_a_dead_worker_left_is_continued_and_given_up_in_the_end(calling: Api, files: PictureServer) -> None:
    ada, services = calling.token("ada"), calling.services
    content = calling.call("POST", f"{REX}/images", ada, json={"urls": [mascot(files, 0), mascot(files, 1)]}).json()

    def pass_time() -> None:
        with services.database.writing() as session:
            session.execute(sa.update(StoredImageFetch).values(next_look_at=utcnow() - timedelta(seconds=1)))

    assert image_fetches.repair(services) == 0  # it was launched just now
    assert launched(calling) == [content["id"]]
    for _ in range(3):
        assert image_fetches._claim(services, content["id"], timedelta(seconds=150)) is not None
        assert image_fetches._claim(services, content["id"], timedelta(seconds=150)) is None  # another worker has it
        assert image_fetches.repair(services) == 0
        pass_time()
        assert image_fetches.repair(services) == 1
    assert launched(calling) == [content["id"], content["id"]]
    done = calling.call("GET", content["url"], ada).json()
    assert [one["code"] for one in done["refused"]] == ["worker_lost", "worker_lost"]
    with services.database.reading() as session:
        assert session.exec(select(StoredImageFetch).where(col(StoredImageFetch.finished_at).is_(None))).all() == []


def test_what_waits_for_a_slot_is_not_launched_a_second_time(calling: Api, files: PictureServer) -> None:
    """The sweep used to send one more message for it each minute, and each came back to the worker until it had one."""
    ada, services = calling.token("ada"), calling.services
    assert calling.call("POST", f"{REX}/images", ada, json={"url": mascot(files, 0)}).status_code == 202
    (fetch_id,) = launched(calling)
    with services.database.writing() as session:
        session.execute(sa.update(StoredImageFetch).values(next_look_at=utcnow()))
    services.slots.total = 1
    assert services.slots.take("ada") == 0.0
    with pytest.raises(RetryLater):
        image_fetches.fetch_images(services, fetch_id)
    assert image_fetches.repair(services) == 0
    services.slots.total = 8
    image_fetches.fetch_images(services, fetch_id)
    assert files.asked != {}
