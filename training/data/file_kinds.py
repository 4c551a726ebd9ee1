"""What kind of file some bytes are, by their first bytes; and the parts of a PNG that hold no pixels."""

import zlib
from collections.abc import Iterator

# The formats that Imprint reads, by Pillow's names, and what people call them.
NAMES = {
    "JPEG": "JPEG",
    "PNG": "PNG",
    "WEBP": "WebP",
    "AVIF": "AVIF",
    "HEIF": "HEIC",
    "TIFF": "TIFF",
    "GIF": "GIF",
    "BMP": "BMP",
    "JPEG2000": "JPEG 2000",
}
ACCEPTED = ", ".join(NAMES.values())

# Their usual suffixes. A file is recognized by its bytes; its suffix only says which files of a folder are pictures.
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".avif", ".jfif", ".jpe", ".heic", ".heif", ".hif", ".tif", ".tiff", ".gif",
    ".bmp", ".jp2", ".j2k", ".jpx",
)  # fmt: skip
CAPTION_SUFFIXES = (".txt", ".caption")  # of captions, in this order if a picture has both
CAPTION_TABLES = ("metadata.jsonl", "captions.csv", "metadata.csv")  # names of files with many captions
ARCHIVE_SUFFIXES = (
    ".zip", ".tar", ".tgz", ".tar.gz", ".tbz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".tar.zst", ".rar", ".7z",
)  # fmt: skip
# Kinds of pictures that Imprint does not read, by suffix.
OTHER_PICTURES = {
    ".jxl": "JPEG XL",
    ".psd": "Photoshop",
    ".svg": "SVG",
    ".ico": "icon",
    ".xcf": "GIMP",
    ".exr": "OpenEXR",
    ".hdr": "Radiance HDR",
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"), "camera raw"),
}

_BRAND_KINDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "a HEIC picture"),
    **dict.fromkeys((b"avif", b"avis"), "an AVIF picture"),
    b"crx ": "a camera raw picture",
    b"qt  ": "a QuickTime video",
}
_RIFF_KINDS = {b"WEBP": "a WebP picture", b"AVI ": "an AVI video"}
_ARCHIVE_KINDS = (
    (b"PK\3\4", "a ZIP archive"),
    (b"PK\5\6", "a ZIP archive"),  # without files
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
)
_START_KINDS = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"II*\0", "a TIFF or camera raw picture"),
    (b"MM\0*", "a TIFF or camera raw picture"),
    (b"II+\0", "a BigTIFF picture"),
    (b"MM\0+", "a BigTIFF picture"),
    (b"8BPS", "a Photoshop picture"),
    (b"gimp xcf", "a GIMP picture"),
    (b"v/1\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance HDR picture"),
    (b"\0\0\1\0", "an icon"),
    (b"FUJIFILMCCD-RAW", "a camera raw picture"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    *_ARCHIVE_KINDS,
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"version https://git-lfs", "a Git LFS pointer, not the picture itself"),
)
_PNG = b"\x89PNG\r\n\x1a\n"
# What decides about a PNG's pixels, orientation and colours.
_PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND"))
_PNG_KEPT = frozenset((b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"eXIf"))
_MOST_KEPT_BYTES = 2**20


def kind_of(data: bytes) -> str | None:
    """What `data` is, with its article, such as "a HEIC picture"; None if its first bytes tell nothing."""
    if data[4:8] == b"ftyp":
        return _BRAND_KINDS.get(data[8:12]) or "an MP4 video"
    if data[:4] == b"RIFF":
        return _RIFF_KINDS.get(data[8:12]) or "a RIFF file"
    for first, kind in _START_KINDS:
        if data.startswith(first):
            return kind
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        return "an SVG drawing"
    return None


def archive_kind(start: bytes) -> str | None:
    """What kind of archive a file with these first 512 bytes is, with its article; None if it is none."""
    if start[257:262] == b"ustar":
        return "a tar archive"
    return next((kind for first, kind in _ARCHIVE_KINDS if start.startswith(first)), None)


def is_animated_png(data: bytes) -> bool:
    """Whether a PNG has more frames than the one that every reader shows."""
    return any(kind == b"acTL" for kind, _ in _png_chunks(data))


def png_pixels(data: bytes) -> bytes:
    """A PNG without the chunks that no pixel depends on: text, times, other frames, profiles that are broken or huge.

    A sound picture may have megabytes of them, or one with a wrong checksum, and a decoder refuses both. Anything else
    comes back unchanged.
    """
    if not data.startswith(_PNG):
        return data
    kept = [_PNG]
    for kind, chunk in _png_chunks(data):
        if kind in _PNG_PIXELS or (kind in _PNG_KEPT and _is_usable(kind, chunk)):
            kept.append(chunk)
        elif kind[:1].isupper() and kind[:1].isalpha():
            return data  # an unknown chunk that decides about the pixels: the decoder refuses it
    return b"".join(kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and bytes of each chunk, with its length and checksum; the last may be cut off."""
    at = len(_PNG)
    while data.startswith(_PNG) and at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        yield kind, data[at:end]
        if kind == b"IEND":
            return
        at = end


def _is_usable(kind: bytes, chunk: bytes) -> bool:
    """Whether the chunk's checksum is right, and it is at most a megabyte, a colour profile also when decompressed."""
    if len(chunk) > _MOST_KEPT_BYTES or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        return False
    if kind != b"iCCP":
        return True
    packed = chunk[8:-4].partition(b"\0")[2][1:]  # after the profile's name and the method
    try:
        return len(zlib.decompressobj().decompress(packed, _MOST_KEPT_BYTES + 1)) <= _MOST_KEPT_BYTES
    except zlib.error:
        return False
