"""Masks of the loss as separate files: the lightness of a mask becomes the alpha channel of its picture."""

import io
from dataclasses import replace
from hashlib import sha256

from PIL import Image

from core.errors import MaskInvalid
from training.data.decoding.colour import DECODE_FAULTS
from training.data.pictures import PreparedImage
from training.data.quality import PictureReport


def with_mask(made: PreparedImage, mask: PreparedImage) -> PreparedImage:
    """Add the lightness of `mask` as the alpha channel. Raises MaskInvalid if the shapes differ."""
    if (made.width, made.height) != (mask.width, mask.height) or not _are_alike(made.report, mask.report):
        raise MaskInvalid(
            f"its mask has another shape: {mask.report.width} x {mask.report.height} pixels, "
            f"and the picture {made.report.width} x {made.report.height}"
        )
    out = io.BytesIO()
    try:
        with (
            Image.open(io.BytesIO(made.png), formats=["PNG"]) as picture,
            Image.open(io.BytesIO(mask.png), formats=["PNG"]) as shown,
        ):
            whole = picture.convert("RGB")
            whole.putalpha(shown.convert("L"))
    except DECODE_FAULTS as error:  # both come from a decoder, which a file may have taken over
        raise MaskInvalid("its mask cannot be put on the picture") from error
    whole.save(out, "PNG", compress_level=3)
    return replace(made, png=out.getvalue(), sha256=sha256(out.getvalue()).hexdigest())


def _are_alike(one: PictureReport, other: PictureReport) -> bool:
    """Whether two files have the same aspect ratio, allowing for rounding, so that they are cropped alike."""
    sides = (one.width, one.height, other.width, other.height)
    return abs(one.width * other.height - one.height * other.width) <= max(sides)
