"""Thumbnails of prepared pictures for the pages."""

import io

from PIL import Image

SIDE = 256


def thumbnail(png: bytes, side: int = SIDE) -> bytes:
    """A JPEG of at most `side` pixels a side. `png` must come from `training.data.pictures`, never from outside."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((side, side))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80, optimize=True)
    return out.getvalue()
