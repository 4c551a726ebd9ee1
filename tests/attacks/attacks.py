"""The attacks: each is a context manager that begins one, checks that it has begun, and ends it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

from sqlmodel import col, func, select

from core.errors import IllegalMove
from jobs import service
from jobs.notices import notices
from storage.tables.fetches import StoredImageFetch
from tests.attacks.servers import Connections
from tests.attacks.world import ATTACKER, World
from tests.site import until

Attack = Callable[[World], AbstractContextManager[None]]
_REX = "/api/influencer/rex"


@contextmanager
def slow_pictures(world: World) -> Iterator[None]:
    """Three trainings of 40 pictures each on a host that sends a byte a second."""
    before = world.host.asked
    jobs = [
        world.site.send(owner_id=ATTACKER, images=world.host.urls(40, f"slow-{before}-{number}"))["job_id"]
        for number in range(3)
    ]
    until(lambda: world.host.open >= 4, 60, "slow downloads")
    try:
        yield
    finally:
        _cancel(world, jobs)


@contextmanager
def slow_addresses(world: World) -> Iterator[None]:
    """45 requests to the HTTP API that name 20 addresses each on a host that sends a byte a second."""
    before = world.host.asked

    def ask(number: int) -> int:
        urls = world.host.urls(20, f"address-{before}-{number}")
        return int(world.attacker.post(f"{_REX}/images", json={"urls": urls}).status_code)

    with ThreadPoolExecutor(45) as pool:
        statuses = list(pool.map(ask, range(45)))
    assert set(statuses) <= {202, 429}, statuses
    with world.site.services.database.reading() as session:
        waiting = session.exec(select(func.count()).where(col(StoredImageFetch.finished_at).is_(None))).one()
    assert waiting <= world.site.settings.fetches_per_owner
    yield


@contextmanager
def stalled_uploads(world: World) -> Iterator[None]:
    """30 uploads of 100 MB that send a kilobyte and then nothing."""
    connections = Connections(world.site.web_url)
    head = (
        f"POST {_REX}/images HTTP/1.1\r\nHost: x\r\nAuthorization: {world.attacker.headers['Authorization']}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000000\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    ).encode()

    def one_hangs() -> bool:
        connections.send(head + bytes(1000))
        return not all(connections.statuses(2.0))

    try:
        for _ in range(30):
            connections.send(head + bytes(1000))
        # An attack beside this one may have used up the caller's requests a second, and then all are refused at first.
        until(one_hangs, 60, "an upload that stalls")
        refused = [status for status in connections.statuses(2.0) if status]
        assert set(refused) == {429}, refused
        assert len(refused) >= 30 - world.site.settings.uploads_per_caller
        yield
        until(lambda: all(connections.statuses(0.1)), 60, "the stalled uploads end")
        assert 408 in connections.statuses(0.1)
    finally:
        connections.close()


@contextmanager
def many_streams(world: World) -> Iterator[None]:
    """400 event streams of one token."""
    job = world.site.send(owner_id=ATTACKER, images=world.host.urls(5, f"stream-{world.host.asked}"))["job_id"]
    connections = Connections(world.site.web_url)
    request = (
        f"GET /api/trainings/{job}/events HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: {world.attacker.headers['Authorization']}\r\n\r\n"
    ).encode()
    try:
        for _ in range(400):
            connections.send(request)
        yield
        statuses = connections.statuses(2.0)
        # Streams of a job that has ended end too, and make room for others: its host may be refused by now.
        has_ended = world.site.view(job)["status"] in ("ready", "failed", "cancelled")
        assert has_ended or statuses.count(200) <= world.site.settings.streams_per_caller
        assert set(statuses) <= {200, 429}, set(statuses)
    finally:
        connections.close()
        _cancel(world, [job])


@contextmanager
def greylisted_mail(world: World) -> Iterator[None]:
    """E-mails to an address that its mail server always asks to send later."""
    world.box.deferred.add(f"{ATTACKER}@example.org")
    with world.site.services.database.writing() as session:
        for number in range(40):
            notices.queue_not_started_mail(session, ATTACKER, f"subject {number}", "disabled", "a test")
    try:
        until(lambda: world.box.asked_later >= 2, 60, "deferred mails")
        yield
    finally:
        world.box.deferred.clear()


@contextmanager
def slow_receivers(world: World) -> Iterator[None]:
    """Webhooks of many trainings to receivers that never answer."""
    before, jobs = world.host.open, []
    for number in range(20):
        images = world.site.pictures(ATTACKER, 5)
        url = f"http://{world.host.address}/hook-{before}-{number}"
        jobs.append(world.site.send(owner_id=ATTACKER, images=images, webhook_url=url, max_steps=50)["job_id"])
    _cancel(world, jobs)
    # Not "more than before": an earlier attack may have filled the connections that one receiver gets.
    until(lambda: world.host.hanging > 0, 60, "webhooks without an answer")
    yield


ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (slow_pictures, slow_addresses, stalled_uploads, many_streams, greylisted_mail, slow_receivers)
}


def _cancel(world: World, jobs: list[str]) -> None:
    for job_id in jobs:
        try:
            service.cancel(world.site.services, job_id)
        except IllegalMove:
            continue  # it has ended
