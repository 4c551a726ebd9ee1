"""Pictures of the result: the loss curve, and samples with and without the LoRA."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps

from core.settings import settings

_SEEDS = (1, 2, 3, 4, 5)
_WHERE = ("on a flower meadow", "at night", "on a beach by the sea", "in the snow", "in a desert")
_GUIDANCE = 3.0
_TILE, _GAP, _MARGIN = 160, 12, 150


def loss_curve(losses: Sequence[tuple[int, float]], path: Path) -> None:
    """Draw the loss of each step, and its running mean."""
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
    """Three rows: training pictures, samples of the base model at fixed seeds, and the same with the LoRA."""
    from training.sample import draw  # torch: not before it is needed

    common: dict[str, Any] = {
        "base_model": str(base_model),
        "family": "sd15",
        "prompts": [f"a picture of {trigger} {where}" for where in _WHERE],
        "seeds": _SEEDS,
        "size": (64, 64),
        "guidance": _GUIDANCE,
        "device": settings().device,
    }
    rows = {
        "shown": [Image.open(file).convert("RGB") for file in shown[: len(_SEEDS)]],
        "before": draw(**common),
        "after": draw(**common, lora=lora),
    }
    sheet = Image.new("RGB", (_MARGIN + len(_SEEDS) * (_TILE + _GAP), len(rows) * (_TILE + _GAP) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=22)
    for row, (name, pictures) in enumerate(rows.items()):
        top = _GAP + row * (_TILE + _GAP)
        pen.text((20, top + _TILE // 2), name, fill="#3c2f55", font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            tile = ImageOps.fit(picture, (_TILE, _TILE), Image.Resampling.BICUBIC)
            sheet.paste(tile, (_MARGIN + column * (_TILE + _GAP), top))
    sheet.save(path)
