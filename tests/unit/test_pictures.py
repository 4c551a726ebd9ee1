"""Pictures: what comes out is what was meant, and the faults are those that one sees."""

import io
import random
import zlib
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from core.errors import ImageInvalid, MaskInvalid, SpecInvalid
from tests.unit.drawings import drawing, encoded, opened
from training.data.folders.prepare import load_folder
from training.data.masks import with_mask
from training.data.pictures import FORMATS, buckets, prepare
from training.spec import TrainSpec

MASKED = TrainSpec(base_model="sd15", trigger_word="sks", seed=0, resolution=64, objective={"masked": True})  # type: ignore[call-arg, arg-type]


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


@pytest.mark.parametrize("format_", FORMATS)
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


def test_light_art_on_transparency_lies_over_black() -> None:
    art = Image.new("RGBA", (100, 100), (255, 255, 255, 0))
    art.paste((255, 255, 255, 255), (20, 20, 80, 80))
    made = prepare(encoded(art), resolution=64)
    assert opened(made.png).getpixel((2, 2)) == (0, 0, 0)
    assert opened(made.png).getpixel((32, 32)) == (255, 255, 255)
    assert made.report.notes == ("put over black: what shows is nearly white",)
    assert "over_exposed" not in made.report.faults
    outlined = art.copy()
    outlined.paste((0, 0, 0, 255), (20, 20, 80, 22))
    assert pixel(encoded(outlined), (2, 2)) == (255, 255, 255)


def test_a_file_is_measured_once_for_all_sizes_shapes_and_crops() -> None:
    art = Image.new("RGBA", (300, 200), (255, 255, 255, 0))
    art.paste((255, 255, 255, 255), (20, 20, 80, 80))
    profile = Image.Exif()
    profile[0x0112] = 6
    files = (
        encoded(art), encoded(quarters(), "JPEG", exif=profile), encoded(quarters(300, 200).convert("CMYK"), "JPEG"),
    )  # fmt: skip
    for data in files:
        first = prepare(data, resolution=64, crop=(0, 0, 0.2, 0.2)).report
        marked = replace(first, sharpness=12.5)  # tells what was measured before
        for recipe in ({"resolution": 128}, {"resolution": 256, "aspect_buckets": True}, {"resolution": 64}):
            fresh, made = prepare(data, **recipe), prepare(data, known=marked, **recipe)  # type: ignore[arg-type]
            assert made.png == fresh.png
            assert made.report == replace(fresh.report, sharpness=12.5)
    assert "too_small" in first.faults, "which is so at one size only"
    assert "too_small" not in made.report.faults


def test_of_several_frames_or_pages_the_first_is_used() -> None:
    frames = [Image.new("RGB", (80, 80), colour) for colour in ("red", "blue", "green")]
    for format_ in ("GIF", "PNG", "WEBP", "AVIF", "TIFF"):
        out = io.BytesIO()
        frames[0].save(out, format_, save_all=True, append_images=frames[1:])
        made = prepare(out.getvalue(), resolution=64)
        assert opened(made.png).getpixel((5, 5)) == pytest.approx((254, 0, 0), abs=4), format_
        assert made.report.notes == ("used the first of several frames or pages",), format_


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"tEXt"])
def test_what_a_png_says_beside_its_pixels_cannot_make_it_unreadable(kind: bytes) -> None:
    """Two megabytes of text or profile, and a wrong checksum, which Pillow refuses both."""
    whole = encoded(quarters())
    large = zlib.compress(random.Random(0).randbytes(2_000_000))
    body = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"p\0\0", b"tEXt": b"k\0"}[kind] + large
    chunk = len(body).to_bytes(4, "big") + kind + body
    for checksum in (zlib.crc32(chunk[4:]), 0):
        data = whole[:33] + chunk + checksum.to_bytes(4, "big") + whole[33:]
        assert prepare(data, resolution=64).png == prepare(whole, resolution=64).png


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_each_mode_becomes_rgb(mode: str) -> None:
    assert pixel(encoded(quarters().convert(mode)), (60, 60)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.full((100, 100), 0x8080, dtype=np.uint16))
    assert grey.mode == "I;16"
    assert pixel(encoded(grey)) == (128, 128, 128)


def test_tiff_kinds_come_out_as_they_look() -> None:
    values = np.full((100, 100), 0.5, dtype=np.float32)
    assert pixel(encoded(Image.fromarray(values), "TIFF")) == (127, 127, 127)
    assert pixel(encoded(Image.fromarray(values * 255), "TIFF")) == (127, 127, 127)
    deep = Image.fromarray(np.full((100, 100), 0x8080, dtype=np.uint16))
    assert pixel(encoded(deep, "TIFF")) == (128, 128, 128)
    assert pixel(encoded(quarters().convert("CMYK"), "TIFF"), (60, 60)) == (255, 255, 255)
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.buildTransform(*profiles, "RGB", "LAB").apply(Image.new("RGB", (100, 100), (200, 40, 40)))
    assert pixel(encoded(lab, "TIFF")) == pytest.approx((200, 40, 40), abs=3)


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
    assert prepare(data, resolution=64).report.notes == ("ignored a broken colour profile",)


def test_a_profile_for_other_colours_is_ignored_and_noted() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for mode, colour in (("RGB", (200, 30, 90)), ("L", 77)):
        made = prepare(encoded(Image.new(mode, (100, 100), colour), icc_profile=lab), resolution=64)
        assert made.report.notes == ("ignored a colour profile for another colour mode",)
        assert opened(made.png).getpixel((5, 5)) == (colour if mode == "RGB" else (77, 77, 77))


def test_cmyk_becomes_rgb_with_a_note() -> None:
    ink = Image.new("CMYK", (100, 100), (0, 255, 255, 0))
    made = prepare(encoded(ink, "JPEG", quality=95), resolution=64)
    assert opened(made.png).getpixel((5, 5)) == pytest.approx((254, 0, 0), abs=4)
    assert made.report.notes == ("CMYK without a colour profile: colours are approximate",)


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


# ---- masks ----


def test_a_mask_is_the_alpha_channel_of_a_picture_that_has_one() -> None:
    picture = quarters().convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize((200, 100)))
    masked = opened(prepare(encoded(picture, "PNG"), resolution=64, masked=True).png)
    plain = opened(prepare(encoded(picture, "PNG"), resolution=64).png)
    assert (masked.mode, plain.mode) == ("RGBA", "RGB")
    assert np.array_equal(np.asarray(masked.convert("RGB")), np.asarray(plain))
    alpha = np.asarray(masked.getchannel("A"), int)
    assert abs(alpha[0].mean() - 2) < 3
    assert abs(alpha[-1].mean() - 253) < 3
    assert opened(prepare(encoded(quarters(), "PNG"), resolution=64, masked=True).png).mode == "RGB"


def test_a_mask_of_its_own_is_put_on() -> None:
    made = prepare(encoded(quarters(), "PNG"), resolution=64, masked=True)
    white_left = Image.new("L", (200, 100))
    white_left.paste(255, (0, 0, 100, 100))
    whole = with_mask(made, prepare(encoded(white_left, "PNG"), resolution=64))
    picture = opened(whole.png)
    assert picture.mode == "RGBA"
    assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(opened(made.png)))
    alpha = np.asarray(picture.getchannel("A"))
    assert (alpha[:, :28] >= 253).all()  # resampling rings a little
    assert (alpha[:, 36:] <= 2).all()
    assert whole.sha256 == sha256(whole.png).hexdigest() != made.sha256
    with pytest.raises(ImageInvalid, match="another shape"):
        with_mask(made, prepare(encoded(white_left, "PNG"), resolution=128))


@pytest.mark.parametrize(
    ("picture", "mask", "fits"),
    [
        ((200, 100), (100, 50), True),
        ((1000, 667), (500, 333), True),  # half of it, rounded down
        ((500, 333), (1000, 667), True),
        ((667, 1000), (64, 96), True),
        ((200, 100), (100, 200), False),
        ((200, 100), (100, 100), False),
        ((1000, 667), (1000, 650), False),
        ((1000, 1000), (500, 510), False),
    ],
)
def test_a_mask_has_the_shape_of_its_picture(picture: tuple[int, int], mask: tuple[int, int], fits: bool) -> None:
    """Both are cut to the same square: of another shape it would lie askew, and nobody would see it."""
    made, shown = (prepare(encoded(Image.new("RGB", size, "red")), resolution=64) for size in (picture, mask))
    if fits:
        assert opened(with_mask(made, shown).png).mode == "RGBA"
        return
    with pytest.raises(MaskInvalid) as raised:
        with_mask(made, shown)
    content = "its mask has another shape: {} x {} pixels, and the picture {} x {}".format(*mask, *picture)
    assert raised.value.message == content


def test_masks_lie_beside_the_pictures_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for number in range(5):
        drawing(number).save(tmp_path / f"{number}.png")
    Image.new("L", opened((tmp_path / "0.png").read_bytes()).size, 128).save(tmp_path / "masks" / "0.png")
    (into := tmp_path / "into").mkdir()
    found = load_folder(tmp_path, MASKED, into)
    modes = {opened(one.path.read_bytes()).mode for one in found.examples[1:]}
    first = opened(found.examples[0].path.read_bytes())
    assert (first.mode, modes) == ("RGBA", {"RGB"})
    assert first.getpixel((5, 5))[3] == 128  # type: ignore[index]
    ignored = MASKED.model_copy(update={"objective": type(MASKED.objective)()})
    assert opened(load_folder(tmp_path, ignored, into).examples[0].path.read_bytes()).mode == "RGB"


def test_a_picture_whose_mask_is_none_is_left_out_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for number in range(7):
        drawing(number).save(tmp_path / f"{number}.png")
    (tmp_path / "masks" / "1.PNG").write_bytes(b"no picture")
    Image.new("L", (64, 32)).save(tmp_path / "masks" / "2.jpg")
    (into := tmp_path / "into").mkdir()
    left_out = load_folder(tmp_path, MASKED, into).left_out
    assert list(left_out) == ["picture 2 (1.png)", "picture 3 (2.png)"]
    assert left_out["picture 2 (1.png)"].startswith("its mask cannot be used: the file is not a picture")
    assert left_out["picture 3 (2.png)"].startswith("its mask has another shape: 64 x 32 pixels")


def test_a_mask_that_no_picture_has_the_name_of_is_refused(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for number in range(5):
        drawing(number).save(tmp_path / f"{number}.png")
    for name in ("0.png", "5.png", "0_mask.png"):
        Image.new("L", (64, 64)).save(tmp_path / "masks" / name)
    with pytest.raises(SpecInvalid) as raised:
        load_folder(tmp_path, MASKED, tmp_path)
    assert raised.value.faults == dict.fromkeys(
        ("masks/0_mask.png", "masks/5.png"), "no picture has the name of this mask"
    )
