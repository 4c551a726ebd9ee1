"""Pictures: what comes out is what was meant, and the faults are those that one sees."""

import io
from functools import cache
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageEnhance, ImageFilter

from core.errors import ImageInvalid
from training.pictures import BAD_FAULTS, FAULTS, PictureReport, buckets, near_duplicates, prepare
from training.quality import look_at

PHOTOS = Path(__file__).parents[3] / "shared/data/subjects"
photographs = pytest.mark.skipif(not PHOTOS.is_dir(), reason="the shared photographs are not here")


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format_, **({"compress_level": 1} if format_ == "PNG" else {}), **options)
    return out.getvalue()


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png), formats=["PNG"])


def pixel(data: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    found = opened(prepare(data, resolution=64).png).getpixel(at)
    assert isinstance(found, tuple)
    return found


def quarters(width: int = 200, height: int = 100) -> Image.Image:
    """Red, green, blue and white quarters, from the left top; each can be told after any turn."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 2 - 1, height // 2 - 1), fill=(255, 0, 0))
    draw.rectangle((width // 2, 0, width, height // 2 - 1), fill=(0, 255, 0))
    draw.rectangle((0, height // 2, width // 2 - 1, height), fill=(0, 0, 255))
    return image


def drawing(seed: int, size: int = 512) -> Image.Image:
    """A flat mascot on a plain ground, in a pose of its own."""
    random = Random(seed)
    side = 2 * size
    image = Image.new("RGB", (side, side), random.choice(["white", "#bfe3ff", "#ffe9b8", "#d8f5d0"]))
    draw = ImageDraw.Draw(image)
    body = side * random.uniform(0.18, 0.3)
    x, y = (side / 2 + random.uniform(-0.12, 0.12) * side for _ in range(2))
    draw.ellipse((x - body, y - body, x + body, y + body), fill="#e8743b")
    for hand in (-1, 1):
        eye, reach = x + hand * body * 0.4, random.uniform(-0.8, 0.8)
        draw.ellipse((eye - body * 0.18, y - body * 0.3, eye + body * 0.18, y + body * 0.1), fill="white")
        draw.ellipse((eye - body * 0.08, y - body * 0.15, eye + body * 0.08, y + body * 0.05), fill="black")
        arm = (x + hand * body * 0.9, y, x + hand * body * 1.4, y + reach * body)
        draw.line(arm, fill="#c9542a", width=int(body * 0.15))
    return image.resize((size, size), Image.Resampling.LANCZOS)


@cache
def photos() -> dict[str, Image.Image]:
    """One of each real subject, at 480 pixels."""
    found = sorted(PHOTOS.glob("*/01.jpg"))
    return {str(path): Image.open(path).convert("RGB").resize((480, 480), Image.Resampling.LANCZOS) for path in found}


def report(image: Image.Image, resolution: int = 64) -> PictureReport:
    return prepare(encoded(image), resolution=resolution).report


# ---- the picture ----


def test_the_result_is_a_plain_rgb_png() -> None:
    made = prepare(encoded(quarters(), "JPEG", comment=b"hello"), resolution=64)
    picture = opened(made.png)
    assert (picture.mode, picture.size, picture.info) == ("RGB", (64, 64), {})
    assert (made.width, made.height) == (64, 64)
    assert made.sha256 == sha256(made.png).hexdigest()
    assert (made.report.width, made.report.height, made.report.format) == (200, 100, "JPEG")


def test_the_same_input_gives_the_same_bytes() -> None:
    data = encoded(drawing(1), "JPEG")
    assert prepare(data, resolution=128) == prepare(data, resolution=128)


def test_the_shorter_side_is_fitted_and_the_centre_kept() -> None:
    stripes = Image.new("RGB", (300, 100), "red")
    stripes.paste("blue", (100, 0, 200, 100))
    made = opened(prepare(encoded(stripes), resolution=100).png)
    assert made.size == (100, 100)
    assert made.getcolors() == [(10_000, (0, 0, 255))]
    tall = opened(prepare(encoded(stripes.rotate(90, expand=True)), resolution=100).png)
    assert tall.getcolors() == [(10_000, (0, 0, 255))]


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_each_format_is_read(format_: str) -> None:
    made = prepare(encoded(quarters(), format_), resolution=64)
    assert made.report.format == format_
    corner = pixel(encoded(quarters(), format_), (2, 2))
    assert corner[0] > 200
    assert max(corner[1:]) < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_dropped(orientation: int) -> None:
    """The file's pixels are turned so that, by EXIF, the picture is `quarters` again."""
    undo = [
        None,
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_270,
    ][orientation - 1]
    stored = quarters() if undo is None else quarters().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format_ in ("JPEG", "PNG", "WEBP"):
        made = prepare(encoded(stored, format_, exif=exif), resolution=64)
        assert (made.report.width, made.report.height) == (200, 100)
        picture = opened(made.png)
        found = [picture.getpixel(at) for at in ((4, 4), (60, 4), (4, 60), (60, 60))]
        wanted = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
        assert all(max(abs(a - b) for a, b in zip(f, w, strict=True)) < 40 for f, w in zip(found, wanted, strict=True))  # type: ignore[arg-type]
        assert len(picture.getexif()) == 0


def test_a_large_jpeg_decoded_small_is_still_reported_at_its_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    made = prepare(encoded(quarters(4000, 2000), "JPEG", exif=exif), resolution=64)
    assert (made.report.width, made.report.height) == (2000, 4000)


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (100, 100), (255, 0, 0, 0))
    half = Image.new("RGBA", (100, 100), (255, 0, 0, 128))
    assert pixel(encoded(clear)) == (255, 255, 255)
    assert pixel(encoded(half)) == (255, 127, 127)
    assert pixel(encoded(clear.convert("LA"))) == (255, 255, 255)
    assert pixel(encoded(clear, "WEBP", lossless=True)) == (255, 255, 255)
    palette = Image.new("P", (100, 100), 1)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    assert pixel(encoded(palette)) == (0, 0, 255)
    assert pixel(encoded(palette, transparency=1)) == (255, 255, 255)
    assert pixel(encoded(Image.new("RGB", (100, 100), "blue"), transparency=(0, 0, 255))) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_each_mode_becomes_rgb(mode: str) -> None:
    assert pixel(encoded(quarters().convert(mode)), (60, 60)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.full((100, 100), 0x8080, dtype=np.uint16))
    assert grey.mode == "I;16"
    assert pixel(encoded(grey)) == (128, 128, 128)


# ---- colour ----


def swapped_profile() -> bytes:
    """sRGB with the names of its red and green primaries exchanged: its red is our green."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"\0tmp").replace(b"gXYZ", b"rXYZ").replace(b"\0tmp", b"gXYZ")


def test_the_colour_profile_is_applied_and_dropped() -> None:
    made = prepare(encoded(Image.new("RGB", (100, 100), "red"), icc_profile=swapped_profile()), resolution=64)
    red, green, blue = opened(made.png).getpixel((5, 5))  # type: ignore[misc]
    assert green > 240
    assert max(red, blue) < 40
    assert "icc_profile" not in opened(made.png).info
    assert made.report.notes == ()


def test_an_srgb_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert pixel(encoded(Image.new("RGB", (100, 100), (200, 30, 90)), icc_profile=profile)) == (200, 30, 90)


@pytest.mark.parametrize("profile", [b"\0" * 200, b"x", swapped_profile()[:300]])
def test_a_broken_profile_is_ignored_and_noted(profile: bytes) -> None:
    data = encoded(Image.new("RGB", (100, 100), (200, 30, 90)), icc_profile=profile)
    assert pixel(data) == (200, 30, 90)
    assert prepare(data, resolution=64).report.notes == ("broken colour profile ignored",)


def test_a_profile_for_other_colours_is_ignored_and_noted() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for mode, colour in (("RGB", (200, 30, 90)), ("L", 77)):
        made = prepare(encoded(Image.new(mode, (100, 100), colour), icc_profile=lab), resolution=64)
        assert made.report.notes == ("colour profile for other colours than the picture's ignored",)
        assert opened(made.png).getpixel((5, 5)) == (colour if mode == "RGB" else (77, 77, 77))


def test_cmyk_becomes_rgb_with_a_note() -> None:
    ink = Image.new("CMYK", (100, 100), (0, 255, 255, 0))
    made = prepare(encoded(ink, "JPEG", quality=95), resolution=64)
    assert opened(made.png).getpixel((5, 5)) == pytest.approx((254, 0, 0), abs=4)
    assert made.report.notes == ("CMYK without a colour profile: colours are a guess",)


# ---- buckets ----


@pytest.mark.parametrize("resolution", [64, 128, 512, 1024, 2048])
def test_buckets_keep_area_and_step(resolution: int) -> None:
    assert (resolution, resolution) in buckets(resolution)
    for width, height in buckets(resolution):
        assert width % 64 == 0
        assert height % 64 == 0
        assert 0.8 <= width * height / resolution**2 <= 1.25
        assert (height, width) in buckets(resolution)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((900, 900), (512, 512)), ((1200, 900), (576, 448)), ((900, 1600), (384, 704)), ((5000, 100), (1024, 256))],
)
def test_a_picture_goes_to_the_bucket_of_its_shape(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    made = prepare(encoded(Image.new("RGB", size, "red")), resolution=512, aspect_buckets=True)
    assert (made.width, made.height) == bucket == opened(made.png).size


def test_a_bucket_of_a_sideways_picture_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    made = prepare(encoded(quarters(1600, 900), "JPEG", exif=exif), resolution=512, aspect_buckets=True)
    assert (made.width, made.height) == (384, 704)


# ---- limits ----


def test_bytes_and_pixels_are_capped() -> None:
    data = encoded(quarters())
    with pytest.raises(ImageInvalid, match="at most 100 are accepted"):
        prepare(data, resolution=64, max_bytes=100)
    with pytest.raises(ImageInvalid, match="200 x 100 pixels"):
        prepare(data, resolution=64, max_pixels=19_999)
    prepare(data, resolution=64, max_pixels=20_000, max_bytes=len(data))


# ---- the report ----


def test_a_report_survives_json() -> None:
    made = report(drawing(3))
    assert PictureReport.from_dict(made.to_dict()) == made
    assert PictureReport.from_dict({**made.to_dict(), "bad": []}) == made
    gone = PictureReport.unreadable("the file is empty")
    assert PictureReport.from_dict(gone.to_dict()) == gone
    assert gone.is_bad
    assert not made.is_bad
    assert set(FAULTS) >= BAD_FAULTS


def test_too_small_is_below_half_the_resolution() -> None:
    image = drawing(1, 300)
    assert "too_small" not in report(image, 600).faults
    assert "too_small" in report(image, 602).faults
    assert "too_small" in report(image.resize((2000, 250)), 512).faults


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
    unreadable = PictureReport.unreadable("the file is empty")
    assert near_duplicates([]) == {}
    assert near_duplicates([unreadable, one, two, copy, unreadable, two, copy]) == {3: 1, 5: 2, 6: 1}


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
        one, two = (int(look_at(i.convert("L"), 1, 1, "", 1, ()).dhash, 16) for i in (a, b))
        shares.append((one ^ two).bit_count() / (one | two).bit_count())
    assert min(shares) > 0.3
