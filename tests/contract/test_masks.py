"""Masks of a job's pictures: fetched, judged and kept as the pictures are, on both kinds of database."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.errors import SpecInvalid
from core.settings import Settings
from jobs import keys, service
from jobs.owners import accounts
from jobs.services import Services
from jobs.stages import intake, preprocessing, steps
from jobs.subjects import subject_pictures
from jobs.turns import RetryLater
from storage.picture_report import StoredReport
from storage.tables.jobs import PictureState
from tests.contract.jobs import GRANTED, REQUEST, make_services, picture, row
from tests.servers.pictures import picture_server
from tests.unit.drawings import drawing, encoded, opened

MASKED = {"objective": {"masked": True}, "resolution": 64}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Six pictures of 512 pixels and a mask, `m.png`, whose left half is white."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(6):
        drawing(number).save(folder / f"{number}.png")
    half = Image.new("L", (256, 256))
    half.paste(255, (0, 0, 128, 256))
    half.save(folder / "m.png")
    return folder


@pytest.fixture
def house_with(settings: Settings, files: Path) -> Iterator[Callable[..., Services]]:
    """Houses over one database, with settings of their own."""
    made = []

    def build(**changed: Any) -> Services:
        made.append(make_services(settings.model_copy(update={"file_roots": [files], **changed})))
        return made[-1]

    accounts.grant(build(), "ada", GRANTED, key="welcome")
    yield build
    for services in made:
        services.database.close()


@pytest.fixture
def services(house_with: Callable[..., Services]) -> Services:
    return house_with()


def stored(services: Services, files: Path, count: int = 6) -> list[str]:
    return [store(services, (files / f"{number}.png").read_bytes()) for number in range(count)]


def store(services: Services, data: bytes, *, is_mask: bool = False) -> str:
    return intake.store_picture(services, "ada", "dog", data, is_mask=is_mask)


def submitted(services: Services, images: list[Any], **changed: Any) -> str:
    job_id: str = service.submit(services, {**REQUEST, "images": images, **MASKED, **changed}).job_id
    return job_id


def preprocessed(services: Services, images: list[Any], **changed: Any) -> str:
    """A job whose pictures are all done."""
    job_id = submitted(services, images, **changed)
    for position in range(len(images)):
        if picture(services, job_id, position).state == PictureState.WAITING:
            preprocessing.preprocess(services, job_id, position)
    return job_id


def report(services: Services, job_id: str, position: int = 0) -> StoredReport:
    return picture(services, job_id, position).report or StoredReport()


def alpha(services: Services, sha256: str) -> Image.Image:
    return opened(services.store.get(keys.prepared(sha256))).getchannel("A")


def test_a_mask_from_anywhere_gives_the_same_bytes(house_with: Callable[..., Services], files: Path) -> None:
    with picture_server() as server:
        services = house_with(fetch_allow_hosts=[server.address])
        names = stored(services, files)
        address = server.put("/m.png", (files / "m.png").read_bytes())
        masks = [store(services, (files / "m.png").read_bytes()), (files / "m.png").as_uri(), address]
        made = set()
        for mask in masks:
            job_id = preprocessed(services, [{"ref": (files / "0.png").as_uri(), "mask": mask}, *names[1:]])
            done = picture(services, job_id)
            assert (done.state, done.faults, done.mask) == (PictureState.GOOD, [], mask)
            made.add(done.prepared_sha256)
    [sha256] = made
    assert sha256 is not None
    assert (alpha(services, sha256).getpixel((5, 30)), alpha(services, sha256).getpixel((60, 30))) == (255, 0)


def test_the_dataset_changes_with_the_mask(services: Services, files: Path) -> None:
    names = stored(services, files)
    other = store(services, encoded(Image.new("L", (64, 64), 128)), is_mask=True)
    hashes = []
    for mask in (None, (files / "m.png").as_uri(), other, other):
        job_id = preprocessed(services, [{"ref": names[0], "mask": mask}, *names[1:]])
        steps.dataset(services, job_id)
        hashes.append(row(services, job_id).dataset_sha256)
    assert hashes[2] == hashes[3]
    assert len(set(hashes)) == 3


def test_train_again_keeps_the_masks_and_prepares_nothing_twice(services: Services, files: Path) -> None:
    names, mask = stored(services, files), store(services, (files / "m.png").read_bytes(), is_mask=True)
    first = preprocessed(services, [{"ref": name, "mask": mask} for name in names])
    service.cancel(services, first)
    again: str = service.retry(services, first).job_id
    for position in range(6):
        one, other = picture(services, first, position), picture(services, again, position)
        assert (other.mask, other.prepared_sha256, other.state) == (mask, one.prepared_sha256, PictureState.GOOD)
    # The same pictures without masks, or with them elsewhere, are other pictures.
    bare = submitted(services, [*names[:5], {"ref": names[5], "mask": store(services, b"another")}])
    assert {picture(services, bare, position).state for position in range(6)} == {PictureState.WAITING}


def test_a_worker_that_died_leaves_nothing_that_changes_the_bytes(services: Services, files: Path) -> None:
    images = [
        {"ref": f"{(files / f'{number}.png').as_uri()}", "mask": (files / "m.png").as_uri()} for number in range(5)
    ]
    first, second = preprocessed(services, images), submitted(services, images)
    wanted = picture(services, first).prepared_sha256
    services.store.delete(keys.prepared(wanted or ""))
    preprocessing.preprocess(
        services, second, 0
    )  # finds the row, and not the file: as after a worker that died in between
    assert picture(services, second).prepared_sha256 == wanted


@pytest.mark.parametrize(
    ("mask", "code", "error"),
    [
        (b"no picture", "image_invalid", "its mask cannot be used: the file is not a picture; accepted formats are "),
        (b"", "image_invalid", "its mask cannot be used: the file is empty"),
        (encoded(Image.new("L", (100, 90))), "image_invalid", "its mask has another shape: 100 x 90 pixels, and "),
        (None, "image_unreachable", "its mask: there is no file 'gone.png'"),
    ],
)
def test_a_mask_that_cannot_be_used_is_a_fault_of_its_picture(
    services: Services, files: Path, mask: bytes | None, code: str, error: str
) -> None:
    reference = (files / "gone.png").as_uri() if mask is None else store(services, mask, is_mask=True)
    names = stored(services, files)
    job_id = preprocessed(services, [{"ref": names[0], "mask": reference}, *names[1:]])
    done = picture(services, job_id)
    assert (done.state, done.faults) == (PictureState.BAD, ["unusable_mask"])
    assert report(services, job_id).code == code
    assert (report(services, job_id).error or "").startswith(error)
    steps.dataset(services, job_id)  # five others are good
    [view, *_] = service.get(services, job_id).pictures
    assert (view.state, ((view.report and view.report.error) or "")[:8]) == ("bad", "its mask")
    again = submitted(services, [{"ref": names[0], "mask": reference}, *names[1:]])
    assert picture(services, again).state == (PictureState.WAITING if mask is None else PictureState.BAD)


def test_a_job_that_may_lack_masks_goes_on_without_those_whose_host_stays_away(
    house_with: Callable[..., Services], files: Path
) -> None:
    services = house_with(fetch_allow_hosts=["127.0.0.1:9"], fetch_patience_s=0)
    images = [{"ref": name, "mask": "http://127.0.0.1:9/m.png"} for name in stored(services, files)]
    job_id = submitted(services, images, allow_missing=True)
    with pytest.raises(RetryLater):
        preprocessing.preprocess(services, job_id, 0)
    preprocessing.preprocess(services, job_id, 0)
    assert report(services, job_id).bad == ["unusable_mask"]
    assert report(services, job_id).code == "image_unreachable"


def test_masks_count_against_the_bytes_of_a_picture_and_of_a_job(
    house_with: Callable[..., Services], files: Path
) -> None:
    large = encoded(Image.effect_noise((512, 512), 90))
    (files / "large.png").write_bytes(large)
    size = (files / "0.png").stat().st_size
    assert len(large) > 3 * size

    def first(**limits: int) -> tuple[str | None, int]:
        """What is said of a picture with a large mask, and the bytes that were fetched for it."""
        services = house_with(**limits)
        pair = {"ref": (files / "0.png").as_uri(), "mask": (files / "large.png").as_uri()}
        job_id = submitted(services, [pair, *stored(services, files)[1:]])
        preprocessing.preprocess(services, job_id, 0)
        return report(services, job_id).error, picture(services, job_id).source_bytes

    assert first(max_picture_bytes=2 * size) == (
        f"its mask: the file 'large.png' has more than {2 * size} bytes", size
    )  # fmt: skip
    assert first(max_job_bytes=size) == (
        "its mask: the pictures of this job are larger in total than a job may have (IMPRINT_MAX_JOB_BYTES)", size
    )  # fmt: skip
    assert first() == (None, size + len(large))


def test_a_mask_that_is_not_stored_or_not_the_owners_stores_nothing(services: Services, files: Path) -> None:
    foreign = intake.store_picture(services, "bob", "cat", b"bob's own", is_mask=True)
    gone = store(services, b"removed", is_mask=True)
    subject_pictures.remove(services, "ada", "dog", gone)
    names = stored(services, files)
    images = [
        {"ref": name, "mask": mask} for name, mask in zip(names, ("pic_x", foreign, gone, names[0]), strict=False)
    ]
    with pytest.raises(SpecInvalid) as caught:
        submitted(services, [*images, *names[4:]])
    assert set(caught.value.faults) == {f"images.{index}.mask" for index in range(3)}
    assert service.jobs(services, owner_id="ada") == []


def test_stored_masks_are_not_among_the_pictures(services: Services, files: Path) -> None:
    data = (files / "0.png").read_bytes()
    shown, mask = store(services, data), store(services, data, is_mask=True)
    assert shown != mask
    assert (store(services, data), store(services, data, is_mask=True)) == (shown, mask)
    assert [view.id for view in subject_pictures.list_pictures(services, "ada", "dog")] == [shown]
    assert [view.id for view in subject_pictures.list_masks(services, "ada", "dog")] == [mask]
    with services.database.reading() as session:
        assert subject_pictures.usable_ids(session, "ada", "dog") == [shown]
