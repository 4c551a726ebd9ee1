"""What people would rather look at than read: the loss curve, and samples before and after."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps

from core.settings import settings

# What is asked for, at which seed. The last one does not name the mascot: it should hardly change.
_ASKED = (
    ("a photo of {}", 1),
    ("a picture of {} on a meadow", 2),
    ("a picture of {} at night", 3),
    ("a picture of {} in the snow", 4),
    ("a picture of a green bear in a room", 5),
)
_TILE, _GAP, _MARGIN, _FOOT = 160, 12, 150, 40


def loss_curve(losses: Sequence[tuple[int, float]], path: Path) -> None:
    """Draw the loss by step: each report of the training, and their running mean."""
    steps = [step for step, _ in losses]
    means: list[float] = []
    for _, loss in losses:
        means.append(loss if not means else 0.7 * means[-1] + 0.3 * loss)
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, [loss for _, loss in losses], ".", color="#b9a6d9", label="mean since the last report")
    axes.plot(steps, means, color="#5b3f8c", label="running mean")
    axes.set(xlabel="step", ylabel="loss", title="training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def before_after(base_model: Path, lora: Path, trigger: str, shown: Sequence[Path], path: Path) -> None:
    """Three rows: what the training was shown, what the base draws at fixed seeds, and the same with the LoRA file."""
    from training.sample import draw  # torch: not before it is needed

    common = {
        "base_model": str(base_model),
        "family": "sd15",
        "prompts": [asked.format(trigger) for asked, _ in _ASKED],
        "seeds": [seed for _, seed in _ASKED],
        "size": (64, 64),
        "device": settings().device,
        "guidance": 4.0,
    }
    rows = {
        "shown": [Image.open(file).convert("RGB") for file in shown[: len(_ASKED)]],
        "before": draw(**common),
        "after": draw(**common, lora=lora),
    }
    width, height = _MARGIN + len(_ASKED) * (_TILE + _GAP), len(rows) * (_TILE + _GAP) + _GAP + _FOOT
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=22)
    for row, (name, pictures) in enumerate(rows.items()):
        top = _GAP + row * (_TILE + _GAP)
        pen.text((20, top + _TILE // 2), name, fill="#3c2f55", font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            tile = ImageOps.fit(picture, (_TILE, _TILE), Image.Resampling.BICUBIC)
            sheet.paste(tile, (_MARGIN + column * (_TILE + _GAP), top))
    small = ImageFont.load_default(size=12)
    for column, (asked, _) in enumerate(_ASKED):
        words = textwrap.fill(asked.format(trigger), 26)
        pen.multiline_text((_MARGIN + column * (_TILE + _GAP), sheet.height - _FOOT), words, fill="#3c2f55", font=small)
    sheet.save(path)
