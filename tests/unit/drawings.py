"""Pictures for tests: drawn ones, the real ones where they are, and how to make files of them."""

import io
from functools import cache
from pathlib import Path
from random import Random

import pillow_heif
import pytest
from PIL import Image, ImageDraw

PHOTOS = Path(__file__).parents[3] / "shared/data/subjects"
photographs = pytest.mark.skipif(not PHOTOS.is_dir(), reason="the shared photographs are not here")


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    if format_ == "HEIF":
        pillow_heif.from_pillow(image).save(out, **options)  # Imprint's own plugin only reads
        return out.getvalue()
    image.save(out, format_, **({"compress_level": 1} if format_ == "PNG" else {}), **options)
    return out.getvalue()


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png), formats=["PNG"])


def drawing(seed: int, size: int = 512) -> Image.Image:
    """A flat mascot on a plain ground, in a pose of its own."""
    random = Random(seed)
    side = 2 * size
    image = Image.new("RGB", (side, side), random.choice(["white", "#bfe3ff", "#ffe9b8", "#d8f5d0"]))
    draw = ImageDraw.Draw(image)
    body = side * random.uniform(0.18, 0.3)
    x, y = (side / 2 + random.uniform(-0.12, 0.12) * side for _ in range(2))
    draw.ellipse((x - body, y - body, x + body, y + body), fill="#e8743b")
    for hand in (-1, 1):
        eye, reach = x + hand * body * 0.4, random.uniform(-0.8, 0.8)
        draw.ellipse((eye - body * 0.18, y - body * 0.3, eye + body * 0.18, y + body * 0.1), fill="white")
        draw.ellipse((eye - body * 0.08, y - body * 0.15, eye + body * 0.08, y + body * 0.05), fill="black")
        arm = (x + hand * body * 0.9, y, x + hand * body * 1.4, y + reach * body)
        draw.line(arm, fill="#c9542a", width=int(body * 0.15))
    return image.resize((size, size), Image.Resampling.LANCZOS)


@cache
def photos() -> dict[str, Image.Image]:
    """One of each real subject, at 480 pixels."""
    found = sorted(PHOTOS.glob("*/01.jpg"))
    return {str(path): Image.open(path).convert("RGB").resize((480, 480), Image.Resampling.LANCZOS) for path in found}
