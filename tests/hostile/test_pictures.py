"""Hostile picture files: each is refused with a message of ours, or comes out as pixels and nothing else."""

import io
import struct
import time
import tracemalloc
from collections.abc import Iterator
from random import Random

import pytest
from PIL import Image

from core.errors import ImageInvalid, MaskInvalid
from tests.hostile.pictures import CLEANED, PNG, REFUSED, SECRET, gps, picture, png
from training.data.decoding.decoder import Decoder
from training.data.pictures import FORMATS, prepare


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    """One for all pictures, as a worker has it."""
    with Decoder() as made:
        yield made


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_our_own_words(decoder: Decoder, name: str) -> None:
    make, words = REFUSED[name]
    data = make()
    decoder.prepare(picture("PNG"), resolution=64)
    before = list(decoder._idle)
    started = time.monotonic()
    with pytest.raises(ImageInvalid) as raised:
        decoder.prepare(data, resolution=64)
    assert raised.value.message == words
    assert SECRET.decode() not in words
    assert time.monotonic() - started < 60
    assert decoder._idle == before, "the decoder lives on"


@pytest.mark.parametrize("name", REFUSED)
def test_a_mask_is_refused_as_a_picture_is(decoder: Decoder, name: str) -> None:
    make, words = REFUSED[name]
    data = make()
    decoder.prepare(picture("PNG"), resolution=64)
    before = list(decoder._idle)
    with pytest.raises(MaskInvalid) as raised:
        decoder.prepare(picture("PNG"), resolution=64, masked=True, mask=data)
    assert raised.value.message == f"its mask cannot be used: {words}"
    assert decoder._idle == before, "the decoder lives on"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_costs_no_memory() -> None:
    """Refused by its header: nothing of 144 megapixels is ever allocated by us."""
    data = png(12_000, 12_000)
    assert len(data) < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(ImageInvalid):
            prepare(data, resolution=64)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_raised_cap_still_stops_at_pillows_own() -> None:
    """Where Pillow would only warn of a bomb, an operator who allows a gigapixel still gets an error."""
    with pytest.raises(ImageInvalid, match="at most 89478485 are accepted"):
        prepare(png(12_000, 12_000), resolution=64, max_pixels=10**9)


def chunks(data: bytes) -> set[bytes]:
    """What kinds of chunks a PNG has."""
    found, at = set(), len(PNG)
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        found.add(data[at + 4 : at + 8])
        at += 12 + size
    return found


@pytest.mark.parametrize("name", CLEANED)
@pytest.mark.parametrize("aspect_buckets", [False, True])
def test_it_comes_out_as_pixels_and_nothing_else(decoder: Decoder, name: str, aspect_buckets: bool) -> None:
    made = decoder.prepare(CLEANED[name](), resolution=128, aspect_buckets=aspect_buckets)
    assert chunks(made.png) == {b"IHDR", b"IDAT", b"IEND"}
    assert SECRET not in made.png
    assert len(Image.open(io.BytesIO(made.png)).getexif()) == 0


@pytest.mark.parametrize("name", CLEANED)
def test_of_a_mask_comes_its_lightness_and_nothing_else(decoder: Decoder, name: str) -> None:
    data = CLEANED[name]()
    seen = decoder.prepare(data, resolution=64).report
    whole = decoder.prepare(picture("PNG", size=(seen.width, seen.height)), resolution=64, masked=True, mask=data)
    assert chunks(whole.png) == {b"IHDR", b"IDAT", b"IEND"}
    assert SECRET not in whole.png


def test_where_a_picture_was_taken_is_dropped(decoder: Decoder) -> None:
    """GPS in, of every format that can hold it; none out, though the turn that stood beside it is made."""
    for format_ in ("JPEG", "PNG", "WEBP", "AVIF"):
        data = picture(format_, exif=gps())
        content = Image.open(io.BytesIO(data)).getexif()
        assert content.get_ifd(0x8825)[2] == (1.0, 2.0, 3.0), "it was there"
        made = decoder.prepare(data, resolution=64)
        assert (made.report.width, made.report.height) == (80, 120)
        kept = Image.open(io.BytesIO(made.png))
        assert dict(kept.getexif()) == {}
        assert kept.getexif().get_ifd(0x8825) == {}
        assert b"GPS" not in made.png


def test_a_phones_second_picture_is_left_behind() -> None:
    """MPO, a JPEG with more of them behind it, is what phones write: the first is the picture."""
    first, second = Image.new("RGB", (100, 80), "red"), Image.new("RGB", (100, 80), "blue")
    out = io.BytesIO()
    first.save(out, "MPO", save_all=True, append_images=[second])
    made = prepare(out.getvalue(), resolution=64)
    assert made.report.format == "JPEG"
    assert Image.open(io.BytesIO(made.png)).getpixel((5, 5)) == pytest.approx((254, 0, 0), abs=4)


@pytest.mark.parametrize("format_", FORMATS)
def test_bit_rot_never_escapes_our_errors(decoder: Decoder, format_: str) -> None:
    """Random damage: a picture or ImageInvalid, never another error."""
    random = Random(format_)
    whole = picture(format_, size=(64, 64))
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(random.randint(1, 8)):
            data[random.randrange(len(data))] = random.randrange(256)
        cut = data[: random.randint(1, len(data))] if random.random() < 0.3 else data
        try:
            made = decoder.prepare(bytes(cut), resolution=64)
        except ImageInvalid:
            continue
        assert made.width == 64
