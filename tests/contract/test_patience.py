"""Pictures whose server does not answer: tried again for `fetch_patience_s`, and never trained without unasked."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import col

from core.clock import utcnow
from core.errors import ImageUnreachable
from core.settings import Settings
from jobs import service
from jobs.lifecycle import sweeps
from jobs.lifecycle.retries import LONGEST_FETCH_DELAY_S
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import intake, preprocessing, steps
from jobs.stages.stage_runner import NothingToDo, RetryLater
from notifications.webhook_payload import NoticeJob, webhook_body
from storage.objects.s3 import S3Store
from storage.tables.jobs import JobPicture, PictureState, Status
from tests.contract.jobs import GRANTED, REQUEST, balances, events, make_services, picture, row
from tests.servers.pictures import PictureServer, picture_server
from tests.unit.drawings import drawing, encoded

AWAY = ("/2.png", "/5.png")
OVER = timedelta(hours=2)


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with picture_server() as running:
        yield running


@pytest.fixture
def services(settings: Settings, server: PictureServer) -> Iterator[Services]:
    services = make_services(settings.model_copy(update={"fetch_allow_hosts": [server.address]}))
    accounts.grant(services, "ada", GRANTED, key="welcome")
    yield services
    services.database.close()


def submitted(services: Services, server: PictureServer, count: int = 7, **changed: Any) -> str:
    """A job with `count` pictures on a server that answers 503 for two of them."""
    images = [server.put(f"/{number}.png", encoded(drawing(number))) for number in range(count)]
    server.status.update(dict.fromkeys(AWAY, 503))
    view = service.submit(services, {**REQUEST, "images": images, "resolution": 64, **changed})
    for position in range(count):
        if f"/{position}.png" not in AWAY:
            preprocessing.preprocess(services, view.job_id, position)
    return view.job_id


def postponed(services: Services, job_id: str, position: int = 2) -> float:
    with pytest.raises(RetryLater) as caught:
        preprocessing.preprocess(services, job_id, position)
    return caught.value.delay_s


def wait_for(services: Services, job_id: str, away: timedelta) -> None:
    """As if the pictures that are away had been so for this time."""
    with services.database.writing() as session:
        missing = sa.update(JobPicture).where(col(JobPicture.unreachable_since).is_not(None))
        session.execute(missing.values(unreachable_since=utcnow() - away))


def test_an_outage_is_waited_out_and_nothing_is_trained_without(services: Services, server: PictureServer) -> None:
    job_id = submitted(services, server)
    for _ in range(services.settings.max_attempts + 2):
        for position in (2, 5):
            delay_s = postponed(services, job_id, position)
            assert row(services, job_id).next_look_at > utcnow() + timedelta(seconds=delay_s)
    assert (picture(services, job_id, 2).state, picture(services, job_id, 2).attempt) == (PictureState.WAITING, 0)
    assert "picture 6 (5.png): http://127.0.0.1:" in (row(services, job_id).waiting_note or "")
    assert len(events(services, job_id, "retry")) == 2, "one for each picture"
    assert sweeps.repair_jobs(services) == 0, "it is looked after"
    with pytest.raises(NothingToDo):
        steps.dataset(services, job_id)
    server.status.clear()
    for position in (2, 5):
        preprocessing.preprocess(services, job_id, position)
    assert picture(services, job_id, 2).unreachable_since is None
    steps.dataset(services, job_id)
    view = service.get(services, job_id)
    assert [one.state for one in view.pictures] == [PictureState.GOOD] * 7
    assert [one.label for one in view.pictures][1:3] == ["picture 2 (1.png)", "picture 3 (2.png)"]
    assert (view.total_steps, row(services, job_id).waiting_note) == (700, None)


def test_a_picture_waits_for_a_slot_only_while_its_job_is_active(services: Services, server: PictureServer) -> None:
    """What was left of cancelled jobs used to wait for their owner's slots, and was sent again all the time."""
    job_id = submitted(services, server)
    services.slots.total = 1
    assert services.slots.take("ada") == 0.0
    assert postponed(services, job_id) < 1
    service.cancel(services, job_id)
    with pytest.raises(NothingToDo, match="is final or deleted"):
        preprocessing.preprocess(services, job_id, 2)


def test_the_delays_double_until_a_minute(services: Services, server: PictureServer) -> None:
    job_id = submitted(services, server)
    base = services.settings.retry_base_s
    assert 0.75 * base <= postponed(services, job_id) <= 1.25 * base
    for waited_s, delay_s in ((16, 16), (40, 40), (500, LONGEST_FETCH_DELAY_S)):
        wait_for(services, job_id, timedelta(seconds=waited_s))
        assert 0.75 * delay_s <= postponed(services, job_id) <= 1.3 * delay_s
    wait_for(services, job_id, timedelta(seconds=services.settings.fetch_patience_s - 5))
    assert postponed(services, job_id) <= 5, "the last attempt is at the end of the patience"


def test_a_host_that_is_not_called_for_a_while_is_not_tried_before(server: PictureServer, settings: Settings) -> None:
    """Each picture of such a host used to be tried again and again, at the cost of everybody's worker."""
    slow = settings.model_copy(update={"fetch_allow_hosts": [server.address], "fetch_host_s": 1e-9})
    services = make_services(slow)
    accounts.grant(services, "ada", GRANTED, key="welcome")
    job_id = submitted(services, server)
    assert postponed(services, job_id, 2) < 60, "called, in vain"
    assert 500 < postponed(services, job_id, 5) <= 600
    assert row(services, job_id).next_look_at > utcnow() + timedelta(seconds=600)
    services.database.close()


def test_a_server_that_stays_away_fails_the_job_with_all_credits_back(
    services: Services, server: PictureServer
) -> None:
    job_id = submitted(services, server, webhook_url="https://app.example")
    postponed(services, job_id)
    wait_for(services, job_id, OVER)
    with pytest.raises(ImageUnreachable):
        preprocessing.preprocess(services, job_id, 2)
    view = service.get(services, job_id)
    assert (view.status, view.failure.code, view.failure.details) == ("failed", "image_unreachable", {"picture": 3})
    assert view.failure.message.startswith("picture 3 (2.png): http://127.0.0.1:")
    assert view.failure.message.endswith("answered 503; tried for 3600 s")
    assert balances(services) == {"held": 0, "spent": 0, "available": GRANTED}
    body = webhook_body(NoticeJob.model_validate(view), "training.failed", sequence=1, at=utcnow()).to_bytes()
    assert b'"retryable":true' in body


def test_a_job_that_may_lack_pictures_is_trained_without_those_that_stay_away(
    services: Services, server: PictureServer
) -> None:
    job_id = submitted(services, server, allow_missing=True)
    for position in (2, 5):
        postponed(services, job_id, position)
    wait_for(services, job_id, OVER)
    for position in (2, 5):
        preprocessing.preprocess(services, job_id, position)
    steps.dataset(services, job_id)
    view = service.get(services, job_id)
    assert view.total_steps == 500
    assert [one.faults for one in view.pictures if one.state == PictureState.BAD] == [["unreachable"]] * 2


def test_a_job_that_may_lack_pictures_but_has_too_few_left_fails_as_unreachable(
    services: Services, server: PictureServer
) -> None:
    job_id = submitted(services, server, count=6, allow_missing=True)
    for position in (2, 5):
        postponed(services, job_id, position)
    wait_for(services, job_id, OVER)
    for position in (2, 5):
        preprocessing.preprocess(services, job_id, position)
    with pytest.raises(ImageUnreachable, match=r"picture 3 \(2.png\): unreachable; picture 6 \(5.png\): unreachable"):
        steps.dataset(services, job_id)
    view = service.get(services, job_id)
    assert (view.status, view.failure.code) == (Status.FAILED, "image_unreachable")


def test_a_picture_that_is_not_there_is_no_outage(services: Services, server: PictureServer) -> None:
    job_id = submitted(services, server)
    for path in AWAY:
        server.status[path] = 404
    for position in (2, 5):
        preprocessing.preprocess(services, job_id, position)
    steps.dataset(services, job_id)
    assert service.get(services, job_id).total_steps == 500


def test_an_object_store_that_is_away_is_waited_for_as_well(services: Services) -> None:
    images = [intake.store_picture(services, "ada", "dog", encoded(drawing(number))) for number in range(5)]
    job_id = service.submit(services, {**REQUEST, "images": images, "resolution": 64}).job_id
    services.__dict__["store"] = S3Store(
        bucket="away", endpoint_url="http://127.0.0.1:9", access_key_id="key", secret_access_key="secret"
    )
    for _ in range(2):
        postponed(services, job_id, 1)
    assert row(services, job_id).status == Status.TRAINING
    assert (row(services, job_id).waiting_note or "").startswith("picture 2: the object store did not answer")


def test_names_of_pictures_come_from_files_addresses_and_requests(services: Services) -> None:
    stored = [
        intake.store_picture(services, "ada", "dog", b"picture %d" % number, name=f"rex {number}.png")
        for number in range(5)
    ]
    images = [*stored, {"ref": stored[0], "name": "first.png"}, "https://93.184.215.14/far.png?sig=x"]
    job_id = service.submit(services, {**REQUEST, "images": images}).job_id
    names = [one.name for one in service.get(services, job_id).pictures]
    assert names == [*(f"rex {number}.png" for number in range(5)), "first.png", "far.png"]
    service.cancel(services, job_id)
    again = service.retry(services, job_id)
    assert [one.name for one in again.pictures] == names
