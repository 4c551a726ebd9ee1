"""Masks of a job's pictures: fetched, judged and kept as the pictures are, on both kinds of database."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.errors import SpecInvalid
from core.settings import Settings
from jobs import accounts, gallery, intake, keys, service, steps
from jobs.shell import TryAgain
from jobs.wiring import House
from storage.tables import PictureState
from tests.contract.jobs import GRANTED, REQUEST, picture, row
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
def house_with(settings: Settings, files: Path) -> Iterator[Callable[..., House]]:
    """Houses over one database, with settings of their own."""
    made = []

    def build(**changed: Any) -> House:
        made.append(House(settings.model_copy(update={"file_roots": [files], **changed})))
        return made[-1]

    accounts.grant(build(), "ada", GRANTED, key="welcome")
    yield build
    for house in made:
        house.database.close()
        house.decoder.close()


@pytest.fixture
def house(house_with: Callable[..., House]) -> House:
    return house_with()


def stored(house: House, files: Path, count: int = 6) -> list[str]:
    return [store(house, (files / f"{number}.png").read_bytes()) for number in range(count)]


def store(house: House, data: bytes, *, is_mask: bool = False) -> str:
    return intake.store_picture(house, "ada", "dog", data, is_mask=is_mask)


def submitted(house: House, images: list[Any], **changed: Any) -> str:
    job_id: str = service.submit(house, {**REQUEST, "images": images, **MASKED, **changed})["job_id"]
    return job_id


def preprocessed(house: House, images: list[Any], **changed: Any) -> str:
    """A job whose pictures are all done."""
    job_id = submitted(house, images, **changed)
    for position in range(len(images)):
        if picture(house, job_id, position).state == PictureState.WAITING:
            steps.preprocess(house, job_id, position)
    return job_id


def report(house: House, job_id: str, position: int = 0) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(picture(house, job_id, position).report or "{}")
    return told


def alpha(house: House, sha256: str) -> Image.Image:
    return opened(house.store.get(keys.prepared(sha256))).getchannel("A")


def test_a_mask_from_anywhere_gives_the_same_bytes(house_with: Callable[..., House], files: Path) -> None:
    with picture_server() as server:
        house = house_with(fetch_allow_hosts=[server.address])
        names = stored(house, files)
        address = server.put("/m.png", (files / "m.png").read_bytes())
        masks = [store(house, (files / "m.png").read_bytes()), (files / "m.png").as_uri(), address]
        made = set()
        for mask in masks:
            job_id = preprocessed(house, [{"ref": (files / "0.png").as_uri(), "mask": mask}, *names[1:]])
            done = picture(house, job_id)
            assert (done.state, done.faults, done.mask) == (PictureState.GOOD, "[]", mask)
            made.add(done.prepared_sha256)
    [sha256] = made
    assert sha256 is not None
    assert (alpha(house, sha256).getpixel((5, 30)), alpha(house, sha256).getpixel((60, 30))) == (255, 0)


def test_the_dataset_changes_with_the_mask(house: House, files: Path) -> None:
    names = stored(house, files)
    other = store(house, encoded(Image.new("L", (64, 64), 128)), is_mask=True)
    hashes = []
    for mask in (None, (files / "m.png").as_uri(), other, other):
        job_id = preprocessed(house, [{"ref": names[0], "mask": mask}, *names[1:]])
        steps.dataset(house, job_id)
        hashes.append(row(house, job_id).dataset_sha256)
    assert hashes[2] == hashes[3]
    assert len(set(hashes)) == 3


def test_train_again_keeps_the_masks_and_prepares_nothing_twice(house: House, files: Path) -> None:
    names, mask = stored(house, files), store(house, (files / "m.png").read_bytes(), is_mask=True)
    first = preprocessed(house, [{"ref": name, "mask": mask} for name in names])
    service.cancel(house, first)
    again: str = service.retry(house, first)["job_id"]
    for position in range(6):
        one, other = picture(house, first, position), picture(house, again, position)
        assert (other.mask, other.prepared_sha256, other.state) == (mask, one.prepared_sha256, PictureState.GOOD)
    # The same pictures without masks, or with them elsewhere, are other pictures.
    bare = submitted(house, [*names[:5], {"ref": names[5], "mask": store(house, b"another")}])
    assert {picture(house, bare, position).state for position in range(6)} == {PictureState.WAITING}


def test_a_worker_that_died_leaves_nothing_that_changes_the_bytes(house: House, files: Path) -> None:
    images = [
        {"ref": f"{(files / f'{number}.png').as_uri()}", "mask": (files / "m.png").as_uri()} for number in range(5)
    ]
    first, second = preprocessed(house, images), submitted(house, images)
    wanted = picture(house, first).prepared_sha256
    house.store.delete(keys.prepared(wanted or ""))
    steps.preprocess(house, second, 0)  # finds the row, and not the file: as after a worker that died in between
    assert picture(house, second).prepared_sha256 == wanted


@pytest.mark.parametrize(
    ("mask", "code", "error"),
    [
        (b"no picture", "image_invalid", "its mask cannot be used: this is not a picture; accepted are "),
        (b"", "image_invalid", "its mask cannot be used: the file is empty"),
        (encoded(Image.new("L", (100, 90))), "image_invalid", "its mask has another shape: 100 x 90 pixels, and "),
        (None, "image_unreachable", "its mask: there is no file 'gone.png'"),
    ],
)
def test_a_mask_that_cannot_be_used_is_a_fault_of_its_picture(
    house: House, files: Path, mask: bytes | None, code: str, error: str
) -> None:
    reference = (files / "gone.png").as_uri() if mask is None else store(house, mask, is_mask=True)
    names = stored(house, files)
    job_id = preprocessed(house, [{"ref": names[0], "mask": reference}, *names[1:]])
    done = picture(house, job_id)
    assert (done.state, json.loads(done.faults)) == (PictureState.BAD, ["unusable_mask"])
    assert report(house, job_id)["code"] == code
    assert report(house, job_id)["error"].startswith(error)
    steps.dataset(house, job_id)  # five others are good
    [view, *_] = service.look(house, job_id)["pictures"]
    assert (view["state"], view["report"]["error"][:8]) == ("bad", "its mask")
    again = submitted(house, [{"ref": names[0], "mask": reference}, *names[1:]])
    assert picture(house, again).state == (PictureState.WAITING if mask is None else PictureState.BAD)


def test_a_host_that_is_away_is_tried_three_times_for_a_mask(house_with: Callable[..., House], files: Path) -> None:
    house = house_with(fetch_allow_hosts=["127.0.0.1:9"])
    job_id = submitted(house, [{"ref": name, "mask": "http://127.0.0.1:9/m.png"} for name in stored(house, files)])
    for _ in range(house.settings.max_attempts - 1):
        with pytest.raises(TryAgain):
            steps.preprocess(house, job_id, 0)
    steps.preprocess(house, job_id, 0)
    assert report(house, job_id)["bad"] == ["unusable_mask"]
    assert report(house, job_id)["code"] == "image_unreachable"


def test_masks_count_against_the_bytes_of_a_picture_and_of_a_job(house_with: Callable[..., House], files: Path) -> None:
    large = encoded(Image.effect_noise((512, 512), 90))
    (files / "large.png").write_bytes(large)
    size = (files / "0.png").stat().st_size
    assert len(large) > 3 * size

    def first(**limits: int) -> tuple[str | None, int]:
        """What is said of a picture with a large mask, and the bytes that were fetched for it."""
        house = house_with(**limits)
        pair = {"ref": (files / "0.png").as_uri(), "mask": (files / "large.png").as_uri()}
        job_id = submitted(house, [pair, *stored(house, files)[1:]])
        steps.preprocess(house, job_id, 0)
        return report(house, job_id).get("error"), picture(house, job_id).source_bytes

    assert first(max_picture_bytes=2 * size) == (
        f"its mask: the file 'large.png' has more than {2 * size} bytes", size
    )  # fmt: skip
    assert first(max_job_bytes=size) == (
        "its mask: the pictures of this job have more bytes than a job may have", size
    )  # fmt: skip
    assert first() == (None, size + len(large))


def test_a_mask_that_is_not_stored_or_not_the_owners_stores_nothing(house: House, files: Path) -> None:
    foreign = intake.store_picture(house, "bob", "cat", b"bob's own", is_mask=True)
    gone = store(house, b"removed", is_mask=True)
    gallery.remove(house, "ada", "dog", gone)
    names = stored(house, files)
    images = [
        {"ref": name, "mask": mask} for name, mask in zip(names, ("pic_x", foreign, gone, names[0]), strict=False)
    ]
    with pytest.raises(SpecInvalid) as caught:
        submitted(house, [*images, *names[4:]])
    assert set(caught.value.faults) == {f"images.{index}.mask" for index in range(3)}
    assert service.jobs(house, owner_id="ada") == []


def test_stored_masks_are_not_among_the_pictures(house: House, files: Path) -> None:
    data = (files / "0.png").read_bytes()
    shown, mask = store(house, data), store(house, data, is_mask=True)
    assert shown != mask
    assert (store(house, data), store(house, data, is_mask=True)) == (shown, mask)
    assert [view["id"] for view in gallery.shown(house, "ada", "dog")] == [shown]
    assert [view["id"] for view in gallery.masks(house, "ada", "dog")] == [mask]
    with house.database.reading() as session:
        assert gallery.usable(session, "ada", "dog") == [shown]
