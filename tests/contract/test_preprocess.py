"""Pictures are prepared several to a message, and each has its own row: what a kill interrupts is only the rest."""

import os
import signal

import pytest
import sqlalchemy as sa
from sqlmodel import col

from core.clock import utcnow
from jobs import service
from jobs.services import Services
from jobs.stages import intake, preprocessing
from jobs.stages.stage_runner import NothingToDo, RetryLater, picture_groups, remaining_work
from storage.picture_report import StoredReport
from storage.tables.jobs import JobPicture
from storage.tables.pictures import StoredPicture
from tests.contract.jobs import REQUEST, picture
from tests.contract.processes import FORK
from tests.unit.drawings import drawing, encoded

POSITIONS = range(5)


def test_stored_pictures_go_by_five_and_addresses_by_two() -> None:
    small = [(position, False, 100_000) for position in range(12)]
    assert picture_groups(small) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    fetched = [(position, True, 0) for position in range(5)]
    assert picture_groups(fetched) == [[0, 1], [2, 3], [4]]
    many = picture_groups([(position, True, 0) for position in range(100)])
    assert (len(many), sorted(map(len, many))[-1]) == (12, 9), "more would keep a worker busy with messages"
    mixed = [(position, position % 2 == 0, 0) for position in range(6)]
    assert picture_groups(mixed) == [[0, 2], [1, 3, 5], [4]]
    assert picture_groups([]) == []


def test_large_pictures_do_not_wait_for_each_other() -> None:
    photographs = [(position, False, 3_000_000) for position in range(3)]
    assert picture_groups(photographs) == [[0], [1], [2]]


@pytest.fixture(autouse=True)
def no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer to start a decoder than a message may take before others get a turn."""
    monkeypatch.setattr(preprocessing, "_GROUP_S", 3600.0)


@pytest.fixture
def job_id(services: Services) -> str:
    """A job with five pictures that can be prepared."""
    images = [
        intake.store_picture(services, "ada", "dog", encoded(drawing(number, 128))) for number in POSITIONS
    ]  # fmt: skip
    job_id: str = service.submit(services, {**REQUEST, "images": images, "resolution": 64}).job_id
    return job_id


def states(services: Services, job_id: str) -> list[tuple[str, int]]:
    """The state of each picture, and how often a worker has begun with it."""
    return [(row.state, row.attempt) for row in (picture(services, job_id, position) for position in POSITIONS)]


def _die_at_commit(services: Services, number: int, job_id: str) -> None:
    """Prepare all pictures in a process that kills itself after a number of commits."""
    own = Services(services.settings)
    count = 0

    def die(_: sa.Connection) -> None:
        nonlocal count
        count += 1
        if count > number:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(own.database.engine, "commit", die)
    preprocessing.preprocess(own, job_id, *POSITIONS)


def test_a_kill_in_the_middle_of_a_message_repeats_only_the_rest(services: Services, job_id: str) -> None:
    services.database.close()
    services.decoder.close()
    commits = 5  # a claim and a record for each of two pictures, and the claim of the third
    child = FORK.Process(target=_die_at_commit, args=(services, commits, job_id))
    child.start()
    child.join(240)
    assert child.exitcode == -signal.SIGKILL
    assert states(services, job_id) == [("good", 1), ("good", 1), ("waiting", 1), ("waiting", 0), ("waiting", 0)]

    # The message comes again while the lease of the dead worker lasts.
    preprocessing.preprocess(services, job_id, *POSITIONS)
    assert states(services, job_id) == [("good", 1), ("good", 1), ("waiting", 1), ("good", 1), ("good", 1)]
    left = remaining_work(services, job_id)
    assert left is not None
    assert left.groups == [[2]]

    with services.database.writing() as session:
        session.execute(sa.update(JobPicture).where(col(JobPicture.position) == 2).values(lease_until=utcnow()))
    preprocessing.preprocess(services, job_id, *left.groups[0])
    assert states(services, job_id) == [("good", 1), ("good", 1), ("good", 2), ("good", 1), ("good", 1)]
    with pytest.raises(NothingToDo):
        preprocessing.preprocess(services, job_id, *POSITIONS)


def test_what_takes_too_long_gives_others_a_turn(
    services: Services, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocessing, "_GROUP_S", 0.0)
    with pytest.raises(RetryLater) as caught:
        preprocessing.preprocess(services, job_id, *POSITIONS)
    assert caught.value.arguments == (job_id, 1, 2, 3, 4)
    assert caught.value.delay_s == 0.0
    assert [state for state, _ in states(services, job_id)] == ["good", *["waiting"] * 4]


def test_a_picture_measured_for_another_resolution_is_not_decoded_to_be_left_out(services: Services) -> None:
    images = [intake.store_picture(services, "ada", "dog", b"no picture %d" % number) for number in range(7)]
    with services.database.writing() as session:
        for number, (side, bad) in {1: (300, []), 3: (2000, ["blurred"]), 5: (2000, [])}.items():
            report = StoredReport(width=side, height=side, dhash=f"{number:0128x}", bad=bad)
            session.get_one(StoredPicture, images[number]).report = report
    job_id = service.submit(services, {**REQUEST, "images": images, "resolution": 512}).job_id
    rows = [picture(services, job_id, position) for position in range(7)]
    assert [row.state for row in rows] == ["waiting", "bad", "waiting", "bad", "waiting", "waiting", "waiting"]
    assert [rows[1].faults, rows[3].faults] == [["too_small"], ["blurred"]]
    left = remaining_work(services, job_id)
    assert left is not None
    assert left.groups == [[0, 2, 4, 5, 6]]
