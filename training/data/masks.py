"""A mask of the loss that is a picture of its own: its lightness becomes the alpha channel of the other."""

import io
from dataclasses import replace
from hashlib import sha256

from PIL import Image

from core.errors import MaskInvalid
from training.data.pictures import DECODE_FAULTS, PreparedImage
from training.data.quality import PictureReport


def with_mask(made: PreparedImage, mask: PreparedImage) -> PreparedImage:
    """A picture with the lightness of another one as its alpha channel. Raises MaskInvalid if their shapes differ."""
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
    except DECODE_FAULTS as error:  # both come from the decoder, which a file may have taken over
        raise MaskInvalid("its mask cannot be put on the picture") from error
    whole.save(out, "PNG", compress_level=3)
    return replace(made, png=out.getvalue(), sha256=sha256(out.getvalue()).hexdigest())


def _are_alike(one: PictureReport, other: PictureReport) -> bool:
    """Whether two files have one shape, so that they are cropped alike; where one is smaller, its sides are rounded."""
    sides = (one.width, one.height, other.width, other.height)
    return abs(one.width * other.height - one.height * other.width) <= max(sides)
