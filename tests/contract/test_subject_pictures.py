"""Pictures of a subject: verdicts of some are those that the whole list has; a file is measured once."""

from random import Random

import pytest
from sqlmodel import select

from jobs.services import Services
from jobs.stages import intake, picture_source
from jobs.subjects import subject_pictures
from storage.picture_report import StoredReport
from storage.tables.pictures import PreparedPicture, StoredPicture
from tests.unit.drawings import drawing, encoded


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


def test_a_file_that_was_checked_is_not_measured_again_at_another_size(services: Services) -> None:
    data = encoded(drawing(1, 96))
    subject_pictures.add(services, "ada", "dog", data)
    with services.database.writing() as session:
        checked = session.exec(select(PreparedPicture)).one()
        assert "too_small" in (checked.report.bad or [])
        checked.report = checked.report.model_copy(update={"sharpness": 12.5})  # tells that it was not measured again
        sha256 = checked.source_sha256
    spec = subject_pictures.preview_spec(None).model_copy(update={"resolution": 64})
    made = picture_source.convert(services, data, sha256, spec, "ada")
    assert (made.width, made.height, made.report.sharpness, made.report.bad) == (64, 64, 12.5, [])
