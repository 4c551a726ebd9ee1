"""What a picture looks like: the faults are those that one sees, and copies are told from other pictures."""

import dataclasses
import io
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from tests.unit.drawings import PHOTOS, drawing, encoded, photographs, photos
from training.data.pictures import prepare
from training.data.quality import BAD_FAULTS, FAULTS, PictureReport, measure, near_duplicates

UNREADABLE = PictureReport(0, 0, "", 0.0, 0.0, "", ("unreadable",), ("the file is empty",))


def report(image: Image.Image, resolution: int = 64) -> PictureReport:
    return prepare(encoded(image), resolution=resolution).report


def test_every_bad_fault_is_a_fault() -> None:
    assert set(FAULTS) >= BAD_FAULTS


def test_too_small_is_what_would_be_enlarged_1_3_times() -> None:
    image = drawing(1, 300)
    assert "too_small" not in report(image, 389).faults
    assert "too_small" in report(image, 390).faults
    assert "too_small" in report(image.resize((2000, 390)), 512).faults


def test_drawings_are_sharp_and_well_exposed() -> None:
    for seed in range(12):
        assert report(drawing(seed)).faults == ()
        assert report(drawing(seed, 140)).faults == ()
    lines = Image.new("L", (700, 700), 255)
    ImageDraw.Draw(lines).ellipse((200, 150, 480, 500), outline=0, width=3)
    assert report(lines).faults == ()
    assert report(Image.eval(lines, lambda level: 255 - level)).faults == ()


def test_blurred_drawings_are_blurred() -> None:
    for seed in range(6):
        assert report(drawing(seed).filter(ImageFilter.GaussianBlur(0.01 * 512))).faults == ("blurred",)


def test_blank_pictures_have_faults() -> None:
    assert set(report(Image.new("RGB", (300, 300), "white")).faults) == {"blurred", "over_exposed"}
    assert set(report(Image.new("RGB", (300, 300), "black")).faults) == {"blurred", "under_exposed"}
    assert report(Image.new("RGB", (300, 300), "grey")).faults == ("blurred",)


def test_pure_noise_is_no_picture() -> None:
    rng = np.random.default_rng(1)
    for side in (64, 300, 1000):
        assert report(Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))).faults == ("noise",)
    grid = np.indices((512, 512)).sum(0) // 4 % 2 * 255
    assert "noise" not in report(Image.fromarray(grid.astype(np.uint8))).faults


def test_a_variant_in_another_colour_is_no_copy() -> None:
    for image in [drawing(seed) for seed in range(6)]:
        hue, *others = image.convert("HSV").split()
        turned = Image.merge("HSV", (hue.point(lambda level: (level + 85) % 256), *others)).convert("RGB")
        copy = prepare(encoded(image, "JPEG", quality=30), resolution=64).report
        assert near_duplicates([report(image), report(turned), copy]) == {2: 0}
        older = [dataclasses.replace(one, colours="") for one in (report(image), copy)]
        assert near_duplicates(older) == {1: 0}, "reports of earlier versions have no colours"


def test_noise_does_not_pass_for_detail_in_the_dark() -> None:
    noise = np.random.default_rng(0).integers(0, 6, (400, 400), dtype=np.uint8)
    assert "under_exposed" in report(Image.fromarray(noise)).faults


@photographs
def test_real_photographs_have_no_faults() -> None:
    for path in sorted(PHOTOS.glob("*/*.jpg")):
        made = prepare(path.read_bytes(), resolution=256)
        assert made.report.faults == (), path
        assert made.report.notes == (), path


@photographs
def test_blurred_and_lost_photographs_have_faults() -> None:
    for path, image in photos().items():
        assert report(image.filter(ImageFilter.GaussianBlur(0.008 * 480))).faults == ("blurred",), path
        assert "blurred" not in report(ImageEnhance.Contrast(image).enhance(0.2)).faults, path
        burnt = image.point(lambda level: min(255, 236 + level // 12))
        assert "over_exposed" in report(burnt).faults, path
        assert "under_exposed" in report(image.point(lambda level: level // 10)).faults, path


# ---- near-duplicates ----


def test_repeats_point_to_the_first_of_their_kind() -> None:
    one, two = report(drawing(1)), report(drawing(2))
    copy = report(drawing(1).resize((300, 300)))
    assert near_duplicates([]) == {}
    assert near_duplicates([UNREADABLE, one, two, copy, UNREADABLE, two, copy]) == {3: 1, 5: 2, 6: 1}


def variants(image: Image.Image) -> dict[str, Image.Image]:
    def jpeg(quality: int) -> Image.Image:
        return Image.open(io.BytesIO(encoded(image, "JPEG", quality=quality)))

    return {
        "JPEG 75": jpeg(75),
        "JPEG 30": jpeg(30),
        "half": image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
        "more colour": ImageEnhance.Color(image).enhance(1.3),
        "more contrast": ImageEnhance.Contrast(image).enhance(1.1),
        "a bit lighter": image.point(lambda level: min(255, level + 10)),
    }


def test_copies_of_drawings_are_found_and_other_poses_are_not() -> None:
    poses = [report(drawing(seed)) for seed in range(20)]
    assert near_duplicates(poses) == {}
    for seed in range(4):
        for name, copy in variants(drawing(seed)).items():
            assert near_duplicates([poses[seed], report(copy)]) == {1: 0}, name


@photographs
def test_copies_of_photographs_are_found_and_other_photographs_are_not() -> None:
    every = [prepare(path.read_bytes(), resolution=64).report for path in sorted(PHOTOS.glob("*/*.jpg"))]
    assert near_duplicates(every) == {}
    for path, image in photos().items():
        for name, copy in variants(image).items():
            assert near_duplicates([report(image), report(copy)]) == {1: 0}, (path, name)


def test_the_hash_tells_apart_what_it_should() -> None:
    """Distances well away from the thresholds, so that a change of Pillow's resizing does not tip them."""
    shares = []
    for a, b in combinations((drawing(seed) for seed in range(10)), 2):
        one, two = (int(measure(i.convert("L"), 1, 1, "").dhash, 16) for i in (a, b))
        shares.append((one ^ two).bit_count() / (one | two).bit_count())
    assert min(shares) > 0.3


def test_the_demos_pictures_are_good() -> None:
    pictures = sorted((Path(__file__).parents[2] / "demo/pictures").glob("*.png"))
    found = [prepare(path.read_bytes(), resolution=64).report for path in pictures]
    assert [made.faults for made in found] == [()] * len(pictures)
    assert near_duplicates(found) == {}
