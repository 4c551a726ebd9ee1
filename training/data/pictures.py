"""Turn an untrusted file into one clean RGB picture, or say why it cannot be used.

Only the pixels of a file survive: every picture is decoded, converted to sRGB, cropped and encoded again.
`training.data.quality` measures its quality. Neither module uses torch or the network.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pi_heif
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from core.errors import ImageInvalid
from training.data import file_kinds
from training.data.decoding.colour import DECODE_FAULTS, flatten, over, resizable
from training.data.framing import WHOLE, Crop, Frame, View, buckets, view_of
from training.data.quality import BAD_FAULTS, FAULTS, WHITE, PictureReport, measure, near_duplicates

__all__ = ["BAD_FAULTS", "FAULTS", "PictureReport", "PreparedImage", "buckets", "near_duplicates", "prepare"]

# Always call Image.open with `formats=`: Pillow supports about seventy, and EPS starts Ghostscript.
FORMATS = tuple(file_kinds.NAMES)

# HEIC is what phones write. Pillow reads it with this plugin, which has no encoder.
pi_heif.options.DECODE_THREADS = 1  # threads count as processes in the confined decoder
pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)

# A progressive JPEG makes the decoder decode the whole picture once per scan. Encoders write about ten scans.
_MAX_JPEG_SCANS = 100

# A JPEG is not decoded to a shorter side than this: the report needs 256 pixels, shrunk a little.
_DRAFT_SIDE = 384

_OVER_BLACK = "put over black: what shows is nearly white"  # a note

# DNGVersion and CFAPattern: a TIFF with these is a camera's raw file, of which Pillow reads only the thumbnail.
_RAW_TAGS = {50706, 33422}


@dataclass(frozen=True)
class PreparedImage:
    """One picture, ready for training."""

    png: bytes  # RGB (with a mask RGBA), 8 bits, no metadata; the same bytes for the same input
    width: int
    height: int
    sha256: str  # of `png`
    report: PictureReport


def prepare(
    data: bytes,
    *,
    resolution: int,
    aspect_buckets: bool = False,
    masked: bool = False,
    crop: Sequence[float] | None = None,
    whole: bool = False,
    report_only: bool = False,
    known: PictureReport | None = None,
    max_pixels: int = 50_000_000,
    max_bytes: int = 20_000_000,
) -> PreparedImage:
    """Decode `data` safely and fit it to `resolution` pixels, with a report on its quality.

    The result is `resolution` × `resolution`, scaled to the shorter side and cropped around the centre; with
    `aspect_buckets` it has the size of the nearest bucket of `buckets(resolution)`. `crop` has the shares of width and
    height (left, top, right, bottom) of the part to use instead of the whole picture. With `masked` a picture with
    transparency keeps its alpha channel as the mask of the loss; its colours are still blended. Pictures with faults
    are prepared too: to leave them out, compare `report.faults` with BAD_FAULTS. With `whole` nothing is cropped, and
    `resolution` is the most pixels of the longer side: for people, not for training. With `report_only`, `png` is
    empty: to write it takes half of the time. `known` is the file's report at another size, shape or crop: what these
    do not change is not measured again, and the picture is the same.

    A picture with transparency is blended over white, or over black if all that shows is nearly white. Of several
    frames or pages the first is used.

    Raises ImageInvalid if the file is too large, has another format, or is truncated or damaged.
    """
    if len(data) > max_bytes:
        raise ImageInvalid(f"the file has {len(data)} bytes; at most {max_bytes} are accepted")
    notes: list[str] = []
    part = Crop(*crop) if crop else WHOLE
    share = max(0.01, min(part.right - part.left, part.bottom - part.top))
    image, format_ = _decode(data, round(max(2 * resolution, _DRAFT_SIDE) / share), max_pixels, notes)
    width, height = _stored_size(image)
    orientation = _orientation(image, notes)
    if orientation in _SIDEWAYS:
        width, height = height, width
    image = _oriented(image, orientation)
    if known is None:
        grey, is_over_black = _seen(image)
        known = measure(grey, width, height, format_)
    else:
        is_over_black = _OVER_BLACK in known.notes
    notes += [_OVER_BLACK] if is_over_black else []
    frame = Frame(resolution, aspect_buckets)
    view = _whole(image, resolution) if whole else view_of(image.width, image.height, frame, part)
    small = _fit(image, view)
    picture = flatten(small, image, _background(is_over_black), notes)
    if masked and small.mode == "RGBA":
        picture.putalpha(small.getchannel("A"))
    png = b"" if report_only else _png(picture)
    enlargement = view_of(width, height, frame, part).enlargement
    return PreparedImage(png, *picture.size, sha256(png).hexdigest(), known.at(picture, enlargement, notes))


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    # Level 1 takes three quarters of the time of level 3, and a third of that of level 6. It is at most a sixth larger
    # than these, and the files are read only a few times.
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


# ---- decoding ----


def _decode(data: bytes, draft_side: int, max_pixels: int, notes: list[str]) -> tuple[Image.Image, str]:
    """The decoded picture, a JPEG perhaps at 1/2, 1/4 or 1/8 of its size, and the name of its format."""
    if data[:2] == b"\xff\xd8" and _jpeg_scans(data) > _MAX_JPEG_SCANS:
        raise ImageInvalid(f"the JPEG has more than {_MAX_JPEG_SCANS} scans")
    try:
        image = Image.open(io.BytesIO(file_kinds.png_pixels(data)), formats=FORMATS)
        # "MPO" files from phones are a JPEG followed by another one, such as a depth map: use the first.
        format_ = "JPEG" if image.format == "MPO" else str(image.format)
        # Pillow only warns above MAX_IMAGE_PIXELS and raises above twice that, so check here.
        limit = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
        if image.width * image.height > limit:
            raise ImageInvalid(f"the picture has {image.width} x {image.height} pixels; at most {limit} are accepted")
        if isinstance(image, TiffImageFile) and set(image.tag_v2) & _RAW_TAGS:
            raise ImageInvalid(f"the file is a camera raw picture; accepted formats are {file_kinds.ACCEPTED}")
        if _has_more_frames(image, data):
            notes.append("used the first of several frames or pages")
        image.info["imprint_size"] = image.size
        if format_ == "JPEG":
            image.draft(None, (draft_side, draft_side))
        image.load()
    except DECODE_FAULTS as error:
        # Do not quote the decoder's message: it may quote the file.
        raise ImageInvalid(_reason(data, error)) from error
    return image, format_


def _has_more_frames(image: Image.Image, data: bytes) -> bool:
    """Whether the file has more than the frame or page that is used. Does not count them: that would decode them."""
    if image.format == "PNG":
        return file_kinds.is_animated_png(data)
    if isinstance(image, TiffImageFile):
        return bool(image.tag_v2.next)
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def _reason(data: bytes, error: BaseException) -> str:
    accepted = f"accepted formats are {file_kinds.ACCEPTED}"
    if not data:
        return "the file is empty"
    if isinstance(error, Image.DecompressionBombError):
        return "the picture has far too many pixels; save a smaller one"
    kind = file_kinds.kind_of(data)
    if isinstance(error, UnidentifiedImageError) and (kind is None or not kind.endswith(_DECODED)):
        what = kind or "not a picture"
        return f"the file is {what}; {accepted}"
    if "truncated" in str(error):
        return "the picture is truncated: its end is missing; save or download it again"
    return f"the picture is damaged and cannot be decoded; {accepted}"


# Kinds of files that a sound file of this kind would have been identified as.
_DECODED = tuple(f" {name} picture" for name in file_kinds.NAMES.values())


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in the file, before `draft` made it smaller."""
    width, height = image.info["imprint_size"]
    return width, height


def _jpeg_scans(data: bytes) -> int:
    """Count the scans of a JPEG by walking its markers. Cheap compared with decoding, and never raises."""
    at, scans = 2, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xD9:
            break
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            scans += 1
            end = _SCAN_END.search(data, at)
            if end is None or scans > _MAX_JPEG_SCANS:
                break
            at = end.start()
    return scans


_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)

# EXIF orientation: the transposition that undoes it.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except DECODE_FAULTS:
        notes.append("ignored broken EXIF data")
        return 1


def _oriented(image: Image.Image, orientation: int) -> Image.Image:
    if orientation not in _TURNS:
        return image
    turned = image.transpose(_TURNS[orientation])
    turned.info = image.info
    return turned


# ---- size ----


def _whole(image: Image.Image, side: int) -> View:
    """The whole picture, at most `side` pixels on its longer side, and never enlarged."""
    scale = min(1.0, side / max(image.size))
    width, height = (max(1, round(length * scale)) for length in image.size)
    return View(0.0, 0.0, float(image.width), float(image.height), width, height)


def _fit(image: Image.Image, view: View) -> Image.Image:
    """The box of `view` scaled to its size, in one step.

    The crop is a box in source coordinates, so a picture of 1 × 50,000,000 is never enlarged as a whole.
    """
    return resizable(image).resize((view.width, view.height), Image.Resampling.LANCZOS, box=view.box, reducing_gap=3.0)


def _seen(image: Image.Image) -> tuple[Image.Image, bool]:
    """The whole picture in grey for the report, and whether black goes behind its transparent parts instead of white.

    At most 256 pixels on the shorter and 1024 on the longer side. The colour profile is ignored: it changes no result,
    and applying it takes as long as everything else.
    """
    whole = resizable(image)
    if whole.mode != "RGBA":
        whole = whole.convert("L")  # convert first: resizing then takes a third of the work
    scale = min(1.0, 256 / min(image.size), 1024 / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    whole = whole.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    is_over_black = False
    if whole.mode == "RGBA":
        levels = np.asarray(whole.convert("RGB").convert("L"))[np.asarray(whole.getchannel("A")) >= 128]
        is_over_black = bool(levels.size and np.percentile(levels, 1) >= WHITE)
    return over(_background(is_over_black), whole).convert("L"), is_over_black


def _background(is_black: bool) -> str:
    return "black" if is_black else "white"
