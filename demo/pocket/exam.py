"""Grade the model: draw captions that it was not trained on, at fixed seeds, and ask the judge."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from demo.pocket import assemble
from demo.pocket.captions import SceneCaption, describe
from demo.pocket.judge import Judge, grade
from demo.pocket.scenes import PocketScene, compose

_SEED = 505
_TILE, _GAP, _TEXT = 128, 8, 34


def papers(count: int, seed: int = _SEED) -> list[tuple[PocketScene, SceneCaption]]:
    """Scenes with captions that name the kind of each thing."""
    random = Random(f"{seed} exam")
    made: list[tuple[PocketScene, SceneCaption]] = []
    while len(made) < count:
        scene = compose(random)
        caption = describe(scene, random)
        if caption.name is None and len(caption.text) < 90:
            made.append((scene, caption))
    return made


def examine(pipeline: Any, judge: Judge, count: int, sheet: Path | None, guidance: float) -> dict[str, Any]:
    """The share of each kind of caption content that the judge recognises, and of all; also for true drawings, which
    is the upper limit.
    """
    asked = papers(count)
    captions = [caption for _, caption in asked]
    pictures = assemble.draw(pipeline, [caption.text for caption in captions], 1, guidance)
    drawings = [scene.draw() for scene, _ in asked]
    if sheet is not None:
        contact_sheet(pictures[:40], [caption.text for caption in captions[:40]]).save(sheet)
    return {"model": _shares(grade(judge, pictures, captions)), "drawings": _shares(grade(judge, drawings, captions))}


def _shares(grades: dict[str, tuple[int, int]]) -> dict[str, float]:
    made = {what: round(right / asked, 3) for what, (right, asked) in sorted(grades.items())}
    right, asked = (sum(counts[i] for counts in grades.values()) for i in (0, 1))
    return {**made, "all": round(right / max(asked, 1), 3)}


def contact_sheet(pictures: Sequence[Image.Image], texts: Sequence[str], columns: int = 8) -> Image.Image:
    """A contact sheet: pictures at twice their size, each above its caption."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (_TILE + _GAP) + _GAP, rows * (_TILE + _TEXT + _GAP) + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=9)
    for number, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left = _GAP + number % columns * (_TILE + _GAP)
        top = _GAP + number // columns * (_TILE + _TEXT + _GAP)
        sheet.paste(picture.resize((_TILE, _TILE), Image.Resampling.BICUBIC), (left, top))
        pen.multiline_text((left, top + _TILE + 1), _wrapped(text, pen, font), fill="black", font=font, spacing=1)
    return sheet


def _wrapped(text: str, pen: ImageDraw.ImageDraw, font: Any) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font=font) > _TILE and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines[:3])
