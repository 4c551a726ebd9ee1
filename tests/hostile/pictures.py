"""Hostile picture files: what each is, and in which words of ours it is refused; and those that come out clean."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from random import Random

import pillow_heif
from PIL import Image, PngImagePlugin

SECRET = b"FOREIGN-BYTES"
PNG = b"\x89PNG\r\n\x1a\n"
END = (b"IEND", b"")


# What we say.
_KINDS = "JPEG, PNG, WebP, AVIF, HEIC, TIFF, GIF, BMP, JPEG 2000"
EMPTY = "the file is empty"
NOT = f"the file is not a picture; accepted formats are {_KINDS}"
CUT = "the picture is truncated: its end is missing; save or download it again"
DAMAGED = f"the picture is damaged and cannot be decoded; accepted formats are {_KINDS}"
HUGE = "the picture has far too many pixels; save a smaller one"
SCANS = "the JPEG has more than 100 scans"


def other(kind: str) -> str:
    return f"the file is {kind}; accepted formats are {_KINDS}"


def large(width: int, height: int) -> str:
    return f"the picture has {width} x {height} pixels; at most 50000000 are accepted"


def picture(format_: str, size: tuple[int, int] = (120, 80), mode: str = "RGB", **options: object) -> bytes:
    # Noise is refused as noise; over a gradient it is a picture that does not compress well.
    image = Image.blend(Image.linear_gradient("L").resize(size), Image.effect_noise(size, 60), 0.5).convert(mode)
    out = io.BytesIO()
    if format_ == "HEIF":
        pillow_heif.from_pillow(image).save(out, **options)  # Imprint's own plugin only reads
    else:
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
    return PNG + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(*END)


def jpeg_claiming(width: int, height: int) -> bytes:
    """A small JPEG whose header says another size."""
    data = bytearray(picture("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def flat(format_: str, size: tuple[int, int], **options: object) -> bytes:
    """A large picture in a small file."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(out, format_, **options)
    return out.getvalue()


def jpeg_of_scans(count: int, size: tuple[int, int] = (120, 80)) -> bytes:
    """A progressive JPEG that repeats its last scan: every repetition is decoded over the whole picture."""
    data = flat("JPEG", size, progressive=True)
    starts = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    return data[:-2] + data[starts[-1] : -2] * count + data[-2:]


def animated(format_: str) -> bytes:
    frames = [Image.new("RGB", (80, 80), colour) for colour in ("red", "blue", "green")]
    out = io.BytesIO()
    frames[0].save(out, format_, save_all=True, append_images=frames[1:], duration=100)
    return out.getvalue()


def tiff_claiming(width: int, height: int) -> bytes:
    """A small TIFF whose tags tell another size."""
    tags = ((256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 8))
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 16) + bytes(8) + struct.pack("<H", len(tags)) + fields + bytes(4)


def webp_claiming(width: int, height: int) -> bytes:
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def text_bomb(name: bytes) -> bytes:
    """Ten megabytes of text in ten kilobytes of chunk."""
    head = b"k\0\0" if name == b"zTXt" else b"k\0\1\0\0\0"
    return png(64, 64, extra=chunk(name, head + zlib.compress(b"A" * 10_000_000, 9)))


def spoilt(format_: str, find: bytes, put: bytes, at: int = 0, size: tuple[int, int] = (120, 80)) -> bytes:
    """A picture with some bytes changed, `at` bytes behind where `find` is first."""
    data = bytearray(picture(format_, size))
    place = data.index(find) + at
    data[place : place + len(put)] = put
    return bytes(data)


def part(format_: str, share: float) -> bytes:
    data = picture(format_)
    return data[: int(len(data) * share)]


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    return PNG + b"".join(chunk(name, data) for name, data in chunks)


def ihdr(width: int, height: int, depth: int = 8, colour: int = 2, squeeze: int = 0, lace: int = 0) -> bytes:
    return struct.pack(">IIBBBBB", width, height, depth, colour, squeeze, 0, lace)


def heif(brand: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + brand + b"mif1" + SECRET


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    # nothing, or no picture
    "empty": (lambda: b"", EMPTY),
    "one byte": (lambda: b"\xff", NOT),
    "text": (lambda: SECRET * 20, NOT),
    "html": (lambda: b"<html><body>" + SECRET, other("a web page")),
    "json": (lambda: b'{"error": "denied"}', NOT),
    "zeros": (lambda: bytes(10_000), NOT),
    "noise": (lambda: Random(1).randbytes(10_000), NOT),
    "zip": (lambda: b"PK\x03\x04" + SECRET, other("a ZIP archive")),
    "pickle": (lambda: b"\x80\x04cos\nsystem\n(S'id'\ntR.", NOT),
    "safetensors": (lambda: struct.pack("<Q", 2) + b"{}", NOT),
    "elf": (lambda: b"\x7fELF" + SECRET, NOT),
    # pictures of formats that are not read, under whatever name they came
    "eps": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%id) (w) file\n",
        other("a PostScript document"),
    ),
    "pdf": (lambda: b"%PDF-1.4\n" + SECRET, other("a PDF document")),
    "svg": (
        lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/x"/></svg>',
        other("an SVG drawing"),
    ),
    "svg with a doctype": (lambda: b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/x">]><svg>&e;</svg>', NOT),
    "mvg": (lambda: b"push graphic-context\nfill 'url(https://x/\"|id\")'\n", NOT),
    "ico": (lambda: picture("ICO"), other("an icon")),
    "ppm": (lambda: picture("PPM"), NOT),
    "tga": (lambda: picture("TGA"), NOT),
    "icns": (lambda: b"icns\0\0\0\x10" + bytes(8), NOT),
    "fits": (lambda: b"SIMPLE  =                    T".ljust(2880), NOT),
    # too large to be decoded
    "1-bit png of 144 megapixels": (lambda: png(12_000, 12_000), large(12_000, 12_000)),
    "png of 400 megapixels": (lambda: png(20_000, 20_000, 10), HUGE),
    "png of 4 gigapixels claimed": (lambda: png(65_535, 65_535, 1), HUGE),
    "png of 2^31 claimed": (lambda: png(2**31 - 1, 2**31 - 1, 0), HUGE),
    "png of one long line": (lambda: png(60_000_000, 1), large(60_000_000, 1)),
    "jpeg of 4 gigapixels claimed": (lambda: jpeg_claiming(65_535, 65_535), HUGE),
    "jpeg of 64 megapixels claimed": (lambda: jpeg_claiming(8000, 8000), large(8_000, 8_000)),
    "webp of 268 megapixels claimed": (lambda: webp_claiming(16_383, 16_383), HUGE),
    "webp of 2^48 claimed": (lambda: webp_claiming(1 << 24, 1 << 24), HUGE),
    "gif of 4 gigapixels claimed": (
        lambda: spoilt("GIF", b"GIF8", struct.pack("<HH", 65_535, 65_535), 6), HUGE,
    ),
    "bmp of 4 gigapixels claimed": (
        lambda: spoilt("BMP", b"BM", struct.pack("<ii", 65_535, 65_535), 18), HUGE,
    ),
    "tiff of 4 gigapixels claimed": (lambda: tiff_claiming(65_535, 65_535), HUGE),
    "tiff of 64 megapixels claimed": (lambda: tiff_claiming(8_000, 8_000), large(8_000, 8_000)),
    "jpeg 2000 of 4 gigapixels claimed": (
        lambda: spoilt("JPEG2000", b"\xff\x4f\xff\x51", struct.pack(">II", 65_535, 65_535), 8), DAMAGED,
    ),
    "heic of 3.6 gigapixels claimed": (
        lambda: spoilt("HEIF", b"ispe", struct.pack(">II", 60_000, 60_000), 8), HUGE,
    ),
    # cut off or broken
    "png without pixels": (lambda: png(64, 64, 0), CUT),
    "png of no width": (lambda: png(0, 64), DAMAGED),
    "png with a wrong crc": (lambda: picture("PNG").replace(b"IDAT", b"IDAX", 1), DAMAGED),
    "png header alone": (lambda: PNG, DAMAGED),
    "png signature and text": (lambda: PNG + SECRET * 50, DAMAGED),
    "png with broken zlib": (
        lambda: PNG + picture("PNG")[8:33] + chunk(b"IDAT", SECRET * 10) + chunk(*END),
        DAMAGED,
    ),
    "png palette that is missing": (lambda: png(64, 64, colour=3), CUT),
    "jpeg header alone": (lambda: b"\xff\xd8\xff", DAMAGED),
    "jpeg and text": (lambda: b"\xff\xd8\xff\xe0" + SECRET * 50, DAMAGED),
    "jpeg without a frame": (lambda: b"\xff\xd8\xff\xd9", DAMAGED),
    "jpeg of no size": (lambda: jpeg_claiming(0, 0), DAMAGED),
    "jpeg whose segment runs out": (lambda: b"\xff\xd8\xff\xe1\xff\xff" + SECRET, DAMAGED),
    "jpeg of 5,000 scans": (lambda: jpeg_of_scans(5_000), SCANS),
    "webp header alone": (lambda: picture("WEBP")[:16], DAMAGED),
    "avif header alone": (lambda: picture("AVIF")[:64], DAMAGED),
    # cut off in the middle: each codec notices in its own way
    "half a jpeg": (lambda: part("JPEG", 0.5), CUT),
    "half a png": (lambda: part("PNG", 0.5), CUT),
    "half a webp": (lambda: part("WEBP", 0.5), DAMAGED),
    "half an avif": (lambda: part("AVIF", 0.5), DAMAGED),
    "a jpeg less one per cent": (lambda: part("JPEG", 0.99), CUT),
    "a png less one per cent": (lambda: part("PNG", 0.99), CUT),
    "a webp less one per cent": (lambda: part("WEBP", 0.99), DAMAGED),
    "an avif less one per cent": (lambda: part("AVIF", 0.99), DAMAGED),
    "half a heic": (lambda: part("HEIF", 0.5), DAMAGED),
    "half a tiff": (lambda: part("TIFF", 0.5), CUT),
    "half a gif": (lambda: part("GIF", 0.5), CUT),
    "half a bmp": (lambda: part("BMP", 0.5), CUT),
    "half a jpeg 2000": (lambda: part("JPEG2000", 0.5), DAMAGED),
    "tiff whose directories go in circles": (
        lambda: b"II*\0" + struct.pack("<I", 8) + bytes(2) + b"\x08\0\0\0", other("a TIFF or camera raw picture"),
    ),
    "camera raw": (lambda: picture("TIFF", tiffinfo={50706: b"\1\4\0\0"}), other("a camera raw picture")),
    "a tenth of a jpeg": (lambda: part("JPEG", 0.1), DAMAGED),
    "a hundredth of a png": (lambda: part("PNG", 0.01), CUT),
    # more formats that are not read
    "psd": (
        lambda: b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\x10\0\0\0\x10\0\x08\0\3" + bytes(12),
        other("a Photoshop picture"),
    ),
    "big tiff": (lambda: b"II+\0\x08\0\0\0\x10" + bytes(20), other("a BigTIFF picture")),
    "dds": (lambda: b"DDS " + bytes(124), NOT),
    "xbm": (lambda: b"#define x_width 8\n#define x_height 8\nstatic char x_bits[] = {0,0,0,0,0,0,0,0};\n", NOT),
    "wmf": (lambda: b"\xd7\xcd\xc6\x9a" + bytes(40), NOT),
    "heic": (lambda: heif(b"heic"), DAMAGED),
    "jpeg xl": (lambda: b"\0\0\0\x0cJXL \r\n\x87\n" + SECRET, other("a JPEG XL picture")),
    "mng": (lambda: b"\x8aMNG\r\n\x1a\n" + bytes(40), NOT),
    "a picture in an icon": (
        lambda: b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0" + struct.pack("<II", 99, 22) + picture("PNG"), other("an icon"),
    ),
    "a picture behind a zip": (lambda: b"PK\x03\x04" + bytes(26) + picture("PNG"), other("a ZIP archive")),
    "a picture behind html": (lambda: b"<html>" + picture("JPEG"), other("a web page")),
    "a jpeg without its first byte": (lambda: picture("JPEG")[1:], NOT),
    "a png sent as text": (lambda: picture("PNG").replace(b"\r\n", b"\n"), NOT),
    "python": (lambda: b"import os; os.system('id')", NOT),
    "a tar": (lambda: b"../../etc/x".ljust(257, b"\0") + b"ustar\00000" + bytes(247), NOT),
    # png: headers and chunks that lie
    "png of depth 3": (lambda: png_of((b"IHDR", ihdr(64, 64, 3)), (b"IDAT", b""), END), DAMAGED),
    "png of colour type 7": (lambda: png_of((b"IHDR", ihdr(64, 64, 8, 7)), (b"IDAT", b""), END), DAMAGED),
    "png of an unknown compression": (lambda: png_of((b"IHDR", ihdr(64, 64, squeeze=9)), (b"IDAT", b"x"), END), CUT),
    "png whose data come first": (lambda: png_of((b"IDAT", b"x"), (b"IHDR", ihdr(64, 64)), END), DAMAGED),
    "png with a short header": (lambda: png_of((b"IHDR", ihdr(64, 64)[:8]), (b"IDAT", b""), END), DAMAGED),
    "png whose header says 2 GB": (lambda: PNG + b"\x7f\xff\xff\xffIHDR" + ihdr(64, 64), DAMAGED),
    "png whose data say 2 GB": (lambda: png_of((b"IHDR", ihdr(64, 64))) + b"\x7f\xff\xff\xffIDAT" + SECRET, DAMAGED),
    "png whose data say 4 GB": (lambda: png_of((b"IHDR", ihdr(64, 64))) + b"\xff\xff\xff\xffIDAT" + SECRET, DAMAGED),
    "png of two headers": (
        lambda: png_of((b"IHDR", ihdr(64, 64)), (b"IHDR", ihdr(9000, 9000)), (b"IDAT", b"x"), END), large(9000, 9000),
    ),
    "png of less data than lines": (
        lambda: png_of((b"IHDR", ihdr(64, 64)), (b"IDAT", zlib.compress(bytes(1000))), END), CUT,
    ),
    "png with a filter that there is not": (
        lambda: png_of((b"IHDR", ihdr(64, 64)), (b"IDAT", zlib.compress(b"\x09" * 64 * 193)), END), DAMAGED,
    ),
    "interlaced png of 144 megapixels": (
        lambda: png_of((b"IHDR", ihdr(12_000, 12_000, 1, 0, lace=1)), (b"IDAT", b"x")), large(12_000, 12_000),
    ),
    # jpeg: frames, tables and scans that lie
    "jpeg of 12 bits": (lambda: spoilt("JPEG", b"\xff\xc0", b"\x0c", 4), DAMAGED),
    "jpeg of 255 colours": (lambda: spoilt("JPEG", b"\xff\xc0", b"\xff", 9), DAMAGED),
    "jpeg without colours": (lambda: spoilt("JPEG", b"\xff\xc0", b"\x00", 9), DAMAGED),
    "lossless jpeg": (lambda: spoilt("JPEG", b"\xff\xc0", b"\xff\xc3"), DAMAGED),
    "arithmetic jpeg": (lambda: spoilt("JPEG", b"\xff\xc0", b"\xff\xcb"), DAMAGED),
    "jpeg without tables": (lambda: spoilt("JPEG", b"\xff\xdb", b"\xff\xfe"), DAMAGED),
    "jpeg with a table of too many codes": (lambda: spoilt("JPEG", b"\xff\xc4", b"\xff" * 16, 5), DAMAGED),
    "jpeg of two frames": (
        lambda: picture("JPEG")[:-2] + picture("JPEG")[picture("JPEG").index(b"\xff\xc0"):], DAMAGED,
    ),
    "jpeg of segments that never end": (lambda: b"\xff\xd8" + b"\xff\xe1\x00\x02" * 200_000, DAMAGED),
    "jpeg of a segment without length": (lambda: b"\xff\xd8\xff\xe1\x00\x00" + SECRET, DAMAGED),
    "jpeg of 101 scans": (lambda: jpeg_of_scans(101), SCANS),
    "jpeg of a million fill bytes": (lambda: b"\xff\xd8" + b"\xff" * 10**6, DAMAGED),
    # webp and avif
    "webp of a lying size": (lambda: spoilt("WEBP", b"RIFF", b"\xff\xff\xff\x7f", 4), DAMAGED),
    "webp without a picture": (lambda: b"RIFF\x04\0\0\0WEBP", DAMAGED),
    "webp of noise": (lambda: b"RIFF\x88\x13\0\0WEBPVP8 \x7c\x13\0\0" + Random(2).randbytes(4988), DAMAGED),
    "webp of a broken frame": (lambda: spoilt("WEBP", b"VP8 ", bytes(40), 8), DAMAGED),
    "webp lossless of noise": (lambda: b"RIFF\x88\x13\0\0WEBPVP8L\x7c\x13\0\0\x2f" + Random(3).randbytes(4987), HUGE),
    "webp animated in its flags": (lambda: webp_claiming(64, 64).replace(b"\n\0\0\0\0", b"\n\0\0\0\2", 1), DAMAGED),
    "avif of another size than told": (lambda: spoilt("AVIF", b"ispe", struct.pack(">II", 60_000, 60_000), 8), DAMAGED),
    "avif without its data": (lambda: spoilt("AVIF", b"mdat", bytes(400), 4), DAMAGED),
    "avif whose items are nowhere": (lambda: spoilt("AVIF", b"iloc", b"\xff" * 24, 12), DAMAGED),
    "avif of boxes in boxes": (lambda: heif(b"avif") + b"\0\0\0\x08meta" * 50_000, DAMAGED),
    "avif box of length zero": (lambda: heif(b"avif")[:24] + b"\0\0\0\0meta", DAMAGED),
    # text that unpacks
}  # fmt: skip


def gps() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = SECRET.decode()
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0), 3: "E", 4: (4.0, 5.0, 6.0)})
    return exif


def with_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", SECRET.decode())
    info.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    return picture("PNG", pnginfo=info)


def exif_of(*entries: tuple[int, int, int, int], onward: int = 0) -> bytes:
    """EXIF of one directory: (tag, type, count, value) each, and where the next directory is."""
    fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + fields + struct.pack("<I", onward)


def indexed_beyond() -> bytes:
    """A PNG whose pixels name colours that its palette does not have."""
    return png_of(
        (b"IHDR", ihdr(64, 64, 8, 3)),
        (b"PLTE", bytes(6)),
        (b"IDAT", zlib.compress((b"\0" + b"\xff" * 64) * 64)),
        END,
    )


CLEANED: dict[str, Callable[[], bytes]] = {
    "a heic with gps": lambda: picture("HEIF", exif=gps().tobytes()),
    "a tiff with gps": lambda: picture("TIFF", exif=gps()),
    "a png with a wrong checksum in a text": lambda: png(64, 64, extra=chunk(b"tEXt", b"k\0" + SECRET)[:-1] + b"\0"),
    "a gif": lambda: picture("GIF"),
    "an animated gif": lambda: animated("GIF"),
    "a bmp": lambda: picture("BMP"),
    "a tiff": lambda: picture("TIFF"),
    "a jpeg 2000": lambda: picture("JPEG2000"),
    "an animated png": lambda: animated("PNG"),
    "an animated webp": lambda: animated("WEBP"),
    "an avif sequence": lambda: animated("AVIF"),
    "a png of 200 squeezed megabytes": lambda: png(
        64, 64, extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**6), 9)) * 200
    ),
    "a png with a squeezed profile of 100 MB": lambda: png(
        64, 64, extra=chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(10**8), 9))
    ),
    "a png animated by its own word": lambda: png(64, 64, extra=chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    "a zTXt bomb": lambda: text_bomb(b"zTXt"),
    "an iTXt bomb": lambda: text_bomb(b"iTXt"),
    "a png of more data than lines": lambda: png_of(
        (b"IHDR", ihdr(64, 64)), (b"IDAT", zlib.compress(bytes(10**7))), END
    ),
    "a png of 15,000 texts": lambda: png(64, 64, extra=chunk(b"tEXt", b"k\0" + SECRET * 70) * 15_000),
    "a png of 16 bits a colour": lambda: png_of(
        (b"IHDR", ihdr(64, 64, 16)),
        (b"IDAT", zlib.compress((b"\0" + SECRET * 30)[:385].ljust(385) * 64)),
        END,
    ),
    "a png of colours that are not there": indexed_beyond,
    "a png with gps": lambda: picture("PNG", exif=gps()),
    "a webp with gps": lambda: picture("WEBP", exif=gps()),
    "an avif with gps": lambda: picture("AVIF", exif=gps()),
    "a jpeg with exif that goes in circles": lambda: picture("JPEG", exif=exif_of((0x8769, 4, 1, 8), onward=8)),
    "a jpeg with exif of 4 GB": lambda: picture("JPEG", exif=exif_of((0x010F, 2, 2**32 - 1, 8), (0x0112, 3, 2**31, 0))),
    "a jpeg with an orientation of 200": lambda: picture("JPEG", exif=exif_of((0x0112, 3, 1, 200))),
    "a jpeg with a broken thumbnail": lambda: picture(
        "JPEG", exif=exif_of((0x0201, 4, 1, 2**31), (0x0202, 4, 1, 2**31))
    ),
    "a cmyk jpeg with a profile of text": lambda: picture("JPEG", mode="CMYK", icc_profile=SECRET * 100),
    "a webp with a profile of zeros": lambda: picture("WEBP", icc_profile=bytes(10_000)),
    "a jpeg with a zip behind it": lambda: picture("JPEG") + b"PK\x03\x04" + SECRET,
    "a jpeg with a script in a comment": lambda: picture("JPEG", comment=b"<script>" + SECRET),
    "a png with html behind it": lambda: picture("PNG") + b"<html>" + SECRET,
    "a webp with a pickle behind it": lambda: picture("WEBP") + b"\x80\x04" + SECRET,
    "a png with text": with_text,
    "a png with a private chunk": lambda: png(64, 64, extra=chunk(b"prVt", SECRET)),
    "a jpeg with gps": lambda: picture("JPEG", exif=gps()),
    "a jpeg with broken exif": lambda: picture("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + SECRET),
    "a png with a colour profile of text": lambda: picture("PNG", icc_profile=SECRET * 100),
    "a jpeg with a megabyte of profile": lambda: picture("JPEG", icc_profile=SECRET * 80_000),
    "a webp with xmp": lambda: picture("WEBP", xmp=SECRET),
    "a picture one pixel wide and long": lambda: picture("PNG", size=(1, 60_000)),
    "a picture of one pixel": lambda: picture("PNG", size=(1, 1)),
    "a picture of two pixels": lambda: picture("PNG", size=(2, 1), mode="LA"),
}
