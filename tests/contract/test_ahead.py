"""Pictures of jobs that wait for their turn are prepared by idle workers, and nothing waits for that."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlmodel import col, select

from core.errors import ImageUnreachable
from core.settings import Settings
from credits import ledger
from jobs import service, shared_objects
from jobs.admission import pauses
from jobs.lifecycle.leases import claim_picture
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import ahead, picture_source, preprocessing, stage_runner, steps
from jobs.stages.ahead import Ahead
from jobs.turns import RetryLater
from storage.tables.jobs import JobEvent, JobPicture, Stage
from tests.contract.jobs import GRANTED, REQUEST, messages, row
from tests.contract.processes import FORK
from tests.unit.drawings import drawing, encoded

PICTURES = 5


@pytest.fixture
def services(settings: Settings, tmp_path: Path) -> Iterator[Services]:
    """One job of an owner is sent at a time, and the pictures of the two that come next are prepared ahead."""
    changed = {"limit_running_jobs": 1, "prepare_ahead": 2, "file_roots": [tmp_path]}
    services = Services(settings.model_copy(update=changed))
    accounts.grant(services, "ada", GRANTED, key="welcome")
    yield services
    services.decoder.close()
    services.database.close()


def submit(services: Services, number: int = 0, **changed: object) -> str:
    """Submit a job whose pictures are at addresses, each another one."""
    images = []
    for position in range(PICTURES):
        file = services.settings.file_roots[0] / f"{number}-{position}.png"
        file.write_bytes(encoded(drawing(PICTURES * number + position, 128)))
        images.append(file.as_uri())
    job_id: str = service.submit(services, {**REQUEST, "images": images, "resolution": 64, **changed}).job_id
    return job_id


def pictures(services: Services, job_id: str) -> list[JobPicture]:
    with services.database.reading() as session:
        query = select(JobPicture).where(JobPicture.job_id == job_id).order_by(col(JobPicture.position))
        return list(session.exec(query))


def states(services: Services, job_id: str) -> set[str]:
    return {picture.state for picture in pictures(services, job_id)}


def fetch_worker(services: Services) -> Ahead:
    """A worker that has just started: it knows no places yet, while this process's may be three seconds old."""
    services.__dict__.pop("places", None)
    return Ahead(services)


def prepare_all(services: Services) -> int:
    """Prepare ahead until nothing is left; returns the number of pictures."""
    worker, count = fetch_worker(services), 0
    while worker.prepare_next():
        count += 1
    return count


def preprocess_all(services: Services, job_id: str) -> None:
    """Run the ordinary stage until it is done; on a slow machine it gives other work a turn between pictures."""
    left: Sequence[object] = [job_id, *range(PICTURES)]
    while left:
        try:
            preprocessing.preprocess(services, *left)  # type: ignore[arg-type]
            return
        except RetryLater as later:
            left = later.arguments or ()


def test_the_pictures_of_the_next_jobs_are_ready_before_their_turn(services: Services) -> None:
    first, *waiting = [submit(services, number) for number in range(4)]
    with services.database.reading() as session:
        before = [ledger.balance(session, "ada"), *session.exec(select(JobEvent.kind).order_by(col(JobEvent.id)))]
    assert prepare_all(services) == 2 * PICTURES
    assert [states(services, job_id) for job_id in (first, *waiting)] == [{"waiting"}, {"good"}, {"good"}, {"waiting"}]
    for picture in pictures(services, waiting[0]):
        assert (picture.attempt, picture.lease_token, picture.lease_until) == (0, 0, None)
        assert picture.prepared_sha256
    with services.database.reading() as session:
        assert before == [
            ledger.balance(session, "ada"), *session.exec(select(JobEvent.kind).order_by(col(JobEvent.id)))
        ]  # fmt: skip
    job = row(services, waiting[0])
    assert (job.status, job.started_at, job.admitted_at) == ("pending", None, None)

    service.cancel(services, first, "ada")
    assert row(services, waiting[0]).admitted_at is not None
    left = stage_runner.remaining_work(services, waiting[0])
    assert left is not None
    assert left.groups == []  # no preprocess message: the first one is the dataset's
    steps.dataset(services, waiting[0])
    job = row(services, waiting[0])
    assert (job.status, job.stage) == ("training", Stage.TRAIN)


def test_a_busy_worker_prepares_nothing_ahead(services: Services) -> None:
    _, waiting = submit(services), submit(services, 1)
    worker = fetch_worker(services)
    services.slots.total = 4
    assert services.slots.take("bob") == 0.0
    assert worker._step() > 0
    assert states(services, waiting) == {"waiting"}
    services.slots.give_back("bob")
    assert worker._step() == 0.0
    assert states(services, waiting) == {"waiting", "good"}


def test_a_job_whose_turn_comes_meanwhile_waits_for_nothing(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, waiting = submit(services), submit(services, 1)
    real, claimed = picture_source.fetch_and_convert, []

    def overtaken(*arguments, **options):  # type: ignore[no-untyped-def]
        picture = arguments[2]
        with services.database.writing() as session:
            claimed.append(claim_picture(session, waiting, picture.position, "ordinary", 30))
        return real(*arguments, **options)

    monkeypatch.setattr(ahead, "fetch_and_convert", overtaken)
    assert fetch_worker(services).prepare_next()
    (claim,) = claimed
    assert claim is not None
    lease, picture = claim
    assert states(services, waiting) == {"waiting"}  # the claim of the ordinary stage is the valid one
    monkeypatch.undo()
    job = row(services, waiting)
    made, size = picture_source.fetch_and_convert(services, job, picture, 10**9)
    preprocessing.record(services, lease, job, picture, made, size, 10**9)
    preprocess_all(services, waiting)
    assert states(services, waiting) == {"good"}


def _die_after_the_put(services: Services) -> None:
    own = Services(services.settings)
    real = own.store.put

    def put(*arguments, **options):  # type: ignore[no-untyped-def]
        real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    own.store.put = put  # type: ignore[method-assign]
    Ahead(own).prepare_next()


def test_a_kill_in_the_middle_delays_and_loses_nothing(services: Services) -> None:
    _, waiting = submit(services), submit(services, 1)
    services.database.close()
    services.decoder.close()
    child = FORK.Process(target=_die_after_the_put, args=(services,))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(list(services.store.list("prepared/"))) == 1
    assert states(services, waiting) == {"waiting"}
    preprocess_all(services, waiting)  # no lease of the dead worker keeps it from them
    assert states(services, waiting) == {"good"}
    service.cancel(services, waiting, "ada")
    shared_objects.collect_orphans(services)


def test_a_job_that_is_cancelled_before_its_turn_leaves_nothing(services: Services) -> None:
    _, waiting = submit(services), submit(services, 1)
    assert prepare_all(services) == PICTURES
    assert len(list(services.store.list("prepared/"))) == PICTURES
    service.cancel(services, waiting, "ada")
    assert "cleanup" in messages(services, waiting)
    stage_runner.clean_up(services, waiting)
    shared_objects.collect(services)
    assert list(services.store.list("prepared/")) == []
    assert {(one.state, one.prepared_sha256, one.source_sha256) for one in pictures(services, waiting)} == {
        ("waiting", None, None)
    }


def test_a_job_that_is_cancelled_in_the_middle_leaves_nothing(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, waiting = submit(services), submit(services, 1)
    real = picture_source.fetch_and_convert

    def cancelled(*arguments, **options):  # type: ignore[no-untyped-def]
        made = real(*arguments, **options)
        service.cancel(services, waiting, "ada")
        stage_runner.clean_up(services, waiting)
        return made

    monkeypatch.setattr(ahead, "fetch_and_convert", cancelled)
    assert fetch_worker(services).prepare_next()
    shared_objects.collect(services)
    assert list(services.store.list("prepared/")) == []


def test_what_may_not_start_is_not_prepared(services: Services) -> None:
    _, waiting = submit(services), submit(services, 1)
    for scope in ("all", "queue:train.sd15", "family:sd15"):
        pauses.pause(services, scope)
        assert prepare_all(services) == 0
        pauses.resume(services, scope)
    assert prepare_all(services) > 0
    assert states(services, waiting) == {"good"}


def test_a_picture_that_cannot_be_fetched_now_is_left_for_the_turn_of_its_job(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, away, waiting = (submit(services, number) for number in range(3))
    real, asked = services.sources.fetch, threading.Lock()
    calls: list[str] = []

    def fetch(reference: str, **options):  # type: ignore[no-untyped-def]
        with asked:
            calls.append(reference)
        if "/1-" in reference:
            raise ImageUnreachable("the host does not answer")
        return real(reference, **options)

    monkeypatch.setattr(services.sources, "fetch", fetch)
    assert prepare_all(services) == 1 + PICTURES
    assert sum("/1-" in reference for reference in calls) == 1  # the job's time for downloads is not spent here
    assert states(services, waiting) == {"good"}
    assert {(one.state, one.unreachable_since) for one in pictures(services, away)} == {("waiting", None)}
