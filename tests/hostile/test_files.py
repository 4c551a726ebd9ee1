"""Hostile picture files: each is refused with a message of ours, or comes out as pixels and nothing else."""

import io
import re
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from random import Random

import pytest
from PIL import Image, PngImagePlugin

from core.errors import ImageInvalid
from training.pictures import prepare

SECRET = b"FOREIGN-BYTES"
PNG = b"\x89PNG\r\n\x1a\n"


def picture(format_: str, size: tuple[int, int] = (120, 80), mode: str = "RGB", **options: object) -> bytes:
    image = Image.effect_noise(size, 60).convert(mode)
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, rows: int | None = None, extra: bytes = b"", colour: int = 0) -> bytes:
    """A one-bit PNG of any claimed size; `rows` of it are there."""
    header = struct.pack(">IIBBBBB", width, height, 1 if colour == 0 else 8, colour, 0, 0, 0)
    squeeze = zlib.compressobj(9)
    line = bytes(1 + (width + 7) // 8)
    data = b"".join(squeeze.compress(line) for _ in range(height if rows is None else rows)) + squeeze.flush()
    return PNG + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    """A small JPEG whose header says another size."""
    data = bytearray(picture("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG that repeats its last scan: every repetition is decoded over the whole picture."""
    data = picture("JPEG", progressive=True)
    starts = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    return data[:-2] + data[starts[-1] : -2] * count + data[-2:]


def animated(format_: str) -> bytes:
    frames = [Image.new("RGB", (80, 80), colour) for colour in ("red", "blue", "green")]
    out = io.BytesIO()
    frames[0].save(out, format_, save_all=True, append_images=frames[1:], duration=100)
    return out.getvalue()


def webp_claiming(width: int, height: int) -> bytes:
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def text_bomb(name: bytes) -> bytes:
    """Ten megabytes of text in ten kilobytes of chunk."""
    head = b"k\0\0" if name == b"zTXt" else b"k\0\1\0\0\0"
    return png(64, 64, extra=chunk(name, head + zlib.compress(b"A" * 10_000_000, 9)))


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    # nothing, or no picture
    "empty": (lambda: b"", "empty"),
    "one byte": (lambda: b"\xff", "not a picture"),
    "text": (lambda: SECRET * 20, "not a picture"),
    "html": (lambda: b"<html><body>" + SECRET, "not a picture"),
    "json": (lambda: b'{"error": "denied"}', "not a picture"),
    "zeros": (lambda: bytes(10_000), "not a picture"),
    "noise": (lambda: Random(1).randbytes(10_000), "not a picture"),
    "zip": (lambda: b"PK\x03\x04" + SECRET, "not a picture"),
    "pickle": (lambda: b"\x80\x04cos\nsystem\n(S'id'\ntR.", "not a picture"),
    "safetensors": (lambda: struct.pack("<Q", 2) + b"{}", "not a picture"),
    "elf": (lambda: b"\x7fELF" + SECRET, "not a picture"),
    # pictures of formats that are not read, under whatever name they came
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%id) (w) file\n", "not a picture"),
    "pdf": (lambda: b"%PDF-1.4\n" + SECRET, "not a picture"),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/x"/></svg>', "not a picture"),
    "svg with a doctype": (lambda: b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/x">]><svg>&e;</svg>', "not a picture"),
    "mvg": (lambda: b"push graphic-context\nfill 'url(https://x/\"|id\")'\n", "not a picture"),
    "gif": (lambda: picture("GIF"), "not a picture"),
    "animated gif": (lambda: animated("GIF"), "not a picture"),
    "bmp": (lambda: picture("BMP"), "not a picture"),
    "tiff": (lambda: picture("TIFF"), "not a picture"),
    "ico": (lambda: picture("ICO"), "not a picture"),
    "jpeg 2000": (lambda: picture("JPEG2000"), "not a picture"),
    "ppm": (lambda: picture("PPM"), "not a picture"),
    "tga": (lambda: picture("TGA"), "not a picture"),
    "icns": (lambda: b"icns\0\0\0\x10" + bytes(8), "not a picture"),
    "fits": (lambda: b"SIMPLE  =                    T".ljust(2880), "not a picture"),
    # too large to be decoded
    "1-bit png of 144 megapixels": (lambda: png(12_000, 12_000), "12000 x 12000 pixels"),
    "png of 400 megapixels": (lambda: png(20_000, 20_000, 10), "far too many pixels"),
    "png of 4 gigapixels claimed": (lambda: png(65_535, 65_535, 1), "far too many pixels"),
    "png of 2^31 claimed": (lambda: png(2**31 - 1, 2**31 - 1, 0), "too many pixels|damaged"),
    "png of one long line": (lambda: png(60_000_000, 1), "60000000 x 1 pixels"),
    "jpeg of 4 gigapixels claimed": (lambda: jpeg_claiming(65_535, 65_535), "far too many pixels"),
    "jpeg of 64 megapixels claimed": (lambda: jpeg_claiming(8000, 8000), "8000 x 8000 pixels"),
    "webp of 268 megapixels claimed": (lambda: webp_claiming(16_383, 16_383), "not a picture|damaged|pixels"),
    "webp of 2^48 claimed": (lambda: webp_claiming(1 << 24, 1 << 24), "not a picture|damaged|pixels"),
    # moving
    "animated png": (lambda: animated("PNG"), "animated"),
    "animated webp": (lambda: animated("WEBP"), "animated"),
    "avif sequence": (lambda: animated("AVIF"), "animated"),
    # cut off or broken
    "png without pixels": (lambda: png(64, 64, 0), "truncated|damaged"),
    "png of no width": (lambda: png(0, 64), "damaged|not a picture"),
    "png with a wrong crc": (lambda: picture("PNG").replace(b"IDAT", b"IDAX", 1), "damaged|truncated|not a picture"),
    "png header alone": (lambda: PNG, "not a picture|damaged"),
    "png signature and text": (lambda: PNG + SECRET * 50, "not a picture|damaged"),
    "png with broken zlib": (
        lambda: PNG + picture("PNG")[8:33] + chunk(b"IDAT", SECRET * 10) + chunk(b"IEND", b""),
        "damaged|truncated",
    ),
    "png palette that is missing": (lambda: png(64, 64, colour=3), "damaged|truncated"),
    "jpeg header alone": (lambda: b"\xff\xd8\xff", "not a picture|damaged"),
    "jpeg and text": (lambda: b"\xff\xd8\xff\xe0" + SECRET * 50, "not a picture|damaged"),
    "jpeg without a frame": (lambda: b"\xff\xd8\xff\xd9", "not a picture|damaged"),
    "jpeg of no size": (lambda: jpeg_claiming(0, 0), "damaged|not a picture|truncated"),
    "jpeg whose segment runs out": (lambda: b"\xff\xd8\xff\xe1\xff\xff" + SECRET, "not a picture|damaged"),
    "jpeg of 5,000 scans": (lambda: jpeg_of_scans(5_000), "more than 100 scans"),
    "webp header alone": (lambda: picture("WEBP")[:16], "damaged|truncated|not a picture"),
    "avif header alone": (lambda: picture("AVIF")[:64], "damaged|truncated|not a picture"),
    **{
        f"half a {format_}": (lambda f=format_: picture(f)[: len(picture(f)) // 2], "truncated|damaged|not a picture")  # type: ignore[misc]
        for format_ in ("JPEG", "PNG", "WEBP", "AVIF")
    },
    # text that unpacks
    "zTXt bomb": (lambda: text_bomb(b"zTXt"), "damaged|not a picture"),
    "iTXt bomb": (lambda: text_bomb(b"iTXt"), "damaged|not a picture"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_our_own_words(name: str) -> None:
    make, words = REFUSED[name]
    data = make()
    started = time.monotonic()
    with pytest.raises(ImageInvalid, match=words) as raised:
        prepare(data, resolution=64)
    assert time.monotonic() - started < 5
    assert SECRET.decode() not in str(raised.value)
    assert len(str(raised.value)) < 200


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


def with_gps() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = SECRET.decode()
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0), 3: "E", 4: (4.0, 5.0, 6.0)})
    return picture("JPEG", exif=exif)


def with_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", SECRET.decode())
    info.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    return picture("PNG", pnginfo=info)


CLEANED: dict[str, Callable[[], bytes]] = {
    "a jpeg with a zip behind it": lambda: picture("JPEG") + b"PK\x03\x04" + SECRET,
    "a jpeg with a script in a comment": lambda: picture("JPEG", comment=b"<script>" + SECRET),
    "a png with html behind it": lambda: picture("PNG") + b"<html>" + SECRET,
    "a webp with a pickle behind it": lambda: picture("WEBP") + b"\x80\x04" + SECRET,
    "a png with text": with_text,
    "a png with a private chunk": lambda: png(64, 64, extra=chunk(b"prVt", SECRET)),
    "a jpeg with gps": with_gps,
    "a jpeg with broken exif": lambda: picture("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + SECRET),
    "a png with a colour profile of text": lambda: picture("PNG", icc_profile=SECRET * 100),
    "a jpeg with a megabyte of profile": lambda: picture("JPEG", icc_profile=SECRET * 80_000),
    "a webp with xmp": lambda: picture("WEBP", xmp=SECRET),
    "a picture one pixel wide and long": lambda: picture("PNG", size=(1, 60_000)),
    "a picture of one pixel": lambda: picture("PNG", size=(1, 1)),
    "a picture of two pixels": lambda: picture("PNG", size=(2, 1), mode="LA"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", CLEANED)
@pytest.mark.parametrize("aspect_buckets", [False, True])
def test_it_comes_out_as_pixels_and_nothing_else(name: str, aspect_buckets: bool) -> None:
    made = prepare(CLEANED[name](), resolution=128, aspect_buckets=aspect_buckets)
    chunks, at = [], len(PNG)
    while at < len(made.png):
        (size,) = struct.unpack(">I", made.png[at : at + 4])
        chunks.append(made.png[at + 4 : at + 8])
        at += 12 + size
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}
    assert SECRET not in made.png
    assert len(Image.open(io.BytesIO(made.png)).getexif()) == 0


def test_a_phones_second_picture_is_left_behind() -> None:
    """MPO, a JPEG with more of them behind it, is what phones write: the first is the picture."""
    first, second = Image.new("RGB", (100, 80), "red"), Image.new("RGB", (100, 80), "blue")
    out = io.BytesIO()
    first.save(out, "MPO", save_all=True, append_images=[second])
    made = prepare(out.getvalue(), resolution=64)
    assert made.report.format == "JPEG"
    assert Image.open(io.BytesIO(made.png)).getpixel((5, 5)) == pytest.approx((254, 0, 0), abs=4)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_bit_rot_never_escapes_our_errors(format_: str) -> None:
    """Random damage: a picture or ImageInvalid, never another error."""
    random = Random(format_)
    whole = picture(format_, size=(64, 64))
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(random.randint(1, 8)):
            data[random.randrange(len(data))] = random.randrange(256)
        cut = data[: random.randint(1, len(data))] if random.random() < 0.3 else data
        try:
            made = prepare(bytes(cut), resolution=64, max_pixels=1_000_000)
        except ImageInvalid:
            continue
        assert made.width == 64
