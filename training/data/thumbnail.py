"""Thumbnails of prepared pictures for the pages."""

import io

from PIL import Image

SIDE = 256


def thumbnail(png: bytes) -> bytes:
    """A JPEG of at most SIDE pixels a side. `png` must come from `training.data.pictures`, never from outside."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80, optimize=True)
    return out.getvalue()
