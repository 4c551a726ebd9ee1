"""The verdicts of some pictures of a subject are those that the whole list has."""

from random import Random

import pytest

from jobs.services import Services
from jobs.stages import intake
from jobs.subjects import subject_pictures
from storage.picture_report import StoredReport
from storage.tables.pictures import StoredPicture


@pytest.fixture
def pictures(services: Services) -> list[str]:
    """Forty measured pictures, many of which repeat others or have faults; one was never measured."""
    random = Random(5)
    looks = [random.getrandbits(512) for _ in range(6)]
    found = []
    for number in range(40):
        found.append(intake.store_picture(services, "ada", "dog", b"picture %d" % number))
        seen = random.choice(looks) ^ (1 << random.randrange(512)) ^ (1 << random.randrange(512))
        report = StoredReport(
            width=random.choice([200, 600, 1200]), height=900, dhash=f"{seen:0128x}",
            colours=random.choice(["", "40" * 48]), bad=random.choice([[], [], ["blurred"]]),
        )  # fmt: skip
        with services.database.writing() as session:
            session.get_one(StoredPicture, found[-1]).report = None if number == 7 else report
    return found


def test_some_pictures_have_the_verdicts_of_the_whole_list(services: Services, pictures: list[str]) -> None:
    with services.database.writing() as session:
        session.get_one(StoredPicture, pictures[3]).crop = [0.1, 0.1, 0.9, 0.9]
    everything = {view.id: view for view in subject_pictures.list_pictures(services, "ada", "dog")}
    codes = [[fault.code for fault in view.faults] for view in everything.values()]
    assert {"near_duplicate", "blurred", "too_small"} <= {code for found in codes for code in found}
    for some in ([pictures[0]], [pictures[39]], pictures[5:12], pictures[::-7], pictures, []):
        found = subject_pictures.get_all(services, "ada", "dog", some)
        assert sorted(view.id for view in found) == sorted(some)
        assert [everything[view.id] for view in found] == found
    assert subject_pictures.get_all(services, "bob", "dog", pictures) == []
