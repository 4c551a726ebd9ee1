"""Draws the examples of docs/pictures.md from the pictures of the demo: a good set, faults, and crops.

`python tools/picture_examples.py` writes docs/images/good-set.webp, faults.webp and crops.webp. The verdicts under the
pictures are those of the code, so a picture whose verdict changes shows that here.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from training.data.framing import Frame, view_of
from training.data.pictures import prepare
from training.data.verdict import judge

_ROOT = Path(__file__).resolve().parent.parent
_PICTURES, _OUT = _ROOT / "demo" / "pictures", _ROOT / "docs" / "images"
_SIDE, _TEXT, _GAP = 200, 44, 12
_FRAME = Frame(512)


def main() -> None:
    pictures = [Image.open(path).convert("RGB") for path in sorted(_PICTURES.glob("*.png"))]
    names = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in sorted(_PICTURES.glob("*.png"))]
    _save("good-set", _sheet([(_square(one), _short(name)) for one, name in zip(pictures, names, strict=True)], 5))
    _save("faults", _sheet([(_square(one), f"{name}\n{_verdict(one)}") for name, one in _faulty(pictures[0])], 4))
    _save("crops", _crops(pictures[2]))


def _faulty(sound: Image.Image) -> list[tuple[str, Image.Image]]:
    """A sound picture, and what may be wrong with it."""
    noise = np.random.default_rng(1).integers(0, 256, (640, 640, 3), dtype=np.uint8)
    return [
        ("as drawn", sound),
        ("blurred", sound.filter(ImageFilter.GaussianBlur(8))),
        ("underexposed", ImageEnhance.Brightness(sound).enhance(0.08)),
        ("overexposed", Image.blend(sound, Image.new("RGB", sound.size, "white"), 0.96)),
        ("noise", Image.fromarray(noise)),
        ("160 pixels", sound.resize((160, 160))),
        ("420 pixels", sound.resize((420, 420))),
        ("another colour", _recoloured(sound)),
    ]


def _recoloured(image: Image.Image) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    return Image.merge("HSV", (hue.point(lambda level: (level + 90) % 256), saturation, value)).convert("RGB")


def _verdict(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    verdict = judge(prepare(out.getvalue(), resolution=_FRAME.resolution).report, _FRAME)
    if verdict.faults:
        return "left out: " + ", ".join(verdict.faults).replace("_", " ")
    return "good, with a warning" if verdict.warnings else "good"


def _crops(image: Image.Image) -> Image.Image:
    """What a training sees of a wide picture: as a square, with aspect buckets, and with a crop of its owner."""
    shown = []
    for name, frame in (("square, the default", _FRAME), ("with aspect buckets", Frame(512, aspect_buckets=True))):
        marked = image.copy()
        view = view_of(image.width, image.height, frame)
        shade = Image.blend(marked, Image.new("RGB", marked.size, "white"), 0.65)
        box = tuple(round(side) for side in view.box)
        shade.paste(marked.crop(box), box[:2])
        ImageDraw.Draw(shade).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline="#d02c2c", width=5)
        shown.append((_whole(shade), f"{name}\ntrained at {view.width} x {view.height}"))
    return _sheet(shown, 2)


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    resample = Image.Resampling.NEAREST if side < _SIDE else Image.Resampling.LANCZOS
    return image.crop((left, top, left + side, top + side)).resize((_SIDE, _SIDE), resample)


def _whole(image: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (_SIDE, _SIDE), "white")
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    sheet.paste(small, ((_SIDE - small.width) // 2, (_SIDE - small.height) // 2))
    return sheet


def _short(text: str) -> str:
    """A caption on two lines."""
    words, lines = text.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 27:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:2]) + (" …" if len(lines) > 2 else "")


def _sheet(cells: Sequence[tuple[Image.Image, str]], columns: int) -> Image.Image:
    rows = -(-len(cells) // columns)
    wide, high = _SIDE + _GAP, _SIDE + _TEXT + _GAP
    sheet = Image.new("RGB", (columns * wide + _GAP, rows * high + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (image, text) in enumerate(cells):
        left, top = _GAP + number % columns * wide, _GAP + number // columns * high
        sheet.paste(image, (left, top))
        draw.multiline_text((left, top + _SIDE + 4), text, fill="#222222", font=font, spacing=3)
    return sheet


def _save(name: str, sheet: Image.Image) -> None:
    sheet.save(_OUT / f"{name}.webp", "WEBP", quality=82, method=6)


if __name__ == "__main__":
    main()
