"""The verdict on a picture belongs to a base model and a resolution; what a training sees of it is computed once."""

import pytest
from PIL import Image

from storage.picture_report import StoredReport
from tests.unit.drawings import encoded, opened
from training.data.framing import Crop, Frame, buckets, view_of
from training.data.pictures import prepare
from training.data.verdict import judge


def measured(width: int, height: int, *bad: str) -> StoredReport:
    return StoredReport(width=width, height=height, bad=list(bad))


@pytest.mark.parametrize(
    ("width", "height", "resolution", "faults", "warned"),
    [
        (512, 512, 512, [], False),
        (400, 600, 512, [], True),  # 1.28 times
        (394, 394, 512, [], True),
        (393, 600, 512, ["too_small"], False),  # 1.303 times
        (800, 800, 1024, [], True),
        (640, 640, 1024, ["too_small"], False),
        (4000, 3000, 1024, [], False),
    ],
)
def test_one_picture_is_good_for_one_base_and_too_small_for_another(
    width: int, height: int, resolution: int, faults: list[str], warned: bool
) -> None:
    verdict = judge(measured(width, height), Frame(resolution))
    assert (verdict.faults, bool(verdict.warnings)) == (faults, warned)


def test_the_text_says_what_would_fit() -> None:
    verdict = judge(measured(640, 700), Frame(1024))
    assert verdict.texts == [
        "too small: 640 by 700 pixels would be enlarged 1.6 times for 1024; it fits a resolution of at most 768"
    ]
    assert judge(measured(640, 700), Frame(768)).faults == []
    assert judge(measured(640, 700), Frame(832)).faults == ["too_small"]
    [warning] = judge(measured(640, 700), Frame(768)).warnings
    assert warning == (
        "it is enlarged 1.20 times to 768 by 768 pixels; a larger picture, or a resolution of at most 640, is sharper"
    )


def test_a_fault_that_was_measured_stays_at_every_resolution() -> None:
    old = measured(600, 600, "too_small", "blurred")  # checked for 1024
    assert judge(old, Frame(512)).faults == ["blurred"]
    assert judge(old, Frame(1024)).faults == ["too_small", "blurred"]
    unread = judge(StoredReport(bad=["unreadable"]), Frame(512))
    assert (unread.faults, unread.view) == (["unreadable"], None)


def test_what_a_training_sees_is_the_middle_in_the_shape_that_it_trains_at() -> None:
    square = view_of(1600, 1200, Frame(512))
    assert (square.box, square.width, square.height) == ((200, 0, 1400, 1200), 512, 512)
    shaped = view_of(1600, 1200, Frame(512, aspect_buckets=True))
    assert (shaped.width, shaped.height) == (576, 448)
    assert shaped.enlargement < square.enlargement
    cropped = view_of(1600, 1200, Frame(512), Crop(0.5, 0.0, 1.0, 0.5))
    assert cropped.box == (900, 0, 1500, 600)
    for width, height in ((1, 5000), (5000, 1), (3, 2), (777, 1234)):
        for frame in (Frame(64), Frame(512), Frame(1024, aspect_buckets=True)):
            seen = view_of(width, height, frame)
            assert 0 <= seen.left < seen.right <= width
            assert 0 <= seen.top < seen.bottom <= height
            assert (seen.width, seen.height) in buckets(frame.resolution)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_crop_is_what_is_prepared(format_: str, masked: bool) -> None:
    """A picture of four colours, large enough that a JPEG is decoded at a smaller size."""
    image = Image.new("RGB", (2000, 1600))
    for number, colour in enumerate(("red", "lime", "blue", "white")):
        image.paste(colour, (number % 2 * 1000, number // 2 * 800, number % 2 * 1000 + 1000, number // 2 * 800 + 800))
    for number, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))):
        left, top = number % 2 / 2, number // 2 / 2
        made = prepare(
            encoded(image, format_), resolution=64, masked=masked, crop=[left + 0.1, top + 0.1, left + 0.4, top + 0.4]
        )
        pixels = opened(made.png).convert("RGB")
        assert all(
            abs(have - want) < 6
            for have, want in zip(pixels.getpixel((32, 32)), colour, strict=True)  # type: ignore[arg-type]
        )
        assert (made.report.width, made.report.height) == (2000, 1600)


def test_a_small_part_is_decoded_as_sharp_as_the_whole() -> None:
    image = Image.effect_noise((4000, 4000), 80).convert("RGB").resize((4000, 4000))
    part = image.crop((1000, 1000, 1400, 1400))
    made = prepare(encoded(image, "JPEG", quality=95), resolution=256, crop=[0.25, 0.25, 0.35, 0.35])
    wanted = prepare(encoded(part, "PNG"), resolution=256)
    difference = (
        sum(
            abs(a - b)
            for a, b in zip(
                opened(made.png).convert("L").tobytes(), opened(wanted.png).convert("L").tobytes(), strict=True
            )
        )
        / 256**2
    )
    assert difference < 12


def test_a_crop_that_is_too_small_is_a_fault_of_the_picture() -> None:
    assert judge(measured(1024, 1024), Frame(512), [0.0, 0.0, 0.25, 0.25]).faults == ["too_small"]
    assert prepare(encoded(Image.new("RGB", (1024, 1024), "red")), resolution=512, crop=[0, 0, 0.25, 0.25]).report
