"""Draws the ten pictures of the demo and their captions: `python demo/draw_mascot.py --out demo/pictures`.

The same seed gives the same bytes with the locked version of Pillow. `--sheet FILE` also makes a contact sheet.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.mascot.scenes import SCENES

SEED = 7
COLOURS = 256


def pictures(seed: int = SEED) -> list[Image.Image]:
    """The ten pictures in RGB, in order."""
    return [scene.draw(seed) for scene in SCENES]


def save(picture: Image.Image, path: Path) -> None:
    """A PNG with its own palette: half the bytes, without a visible difference."""
    path.parent.mkdir(parents=True, exist_ok=True)
    palette = picture.quantize(COLOURS, kmeans=2)
    picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def sheet(drawn: list[Image.Image], side: int = 256, gap: int = 10) -> Image.Image:
    """A sheet of five by two squares, each a picture cropped around the imp."""
    whole = Image.new("RGB", (5 * side + 6 * gap, 2 * side + 3 * gap), (250, 246, 240))
    for i, picture in enumerate(drawn):
        edge = min(picture.size)
        # the imp stands a little left of the middle and below it
        left, top = round((picture.width - edge) * 0.35), round((picture.height - edge) * 0.6)
        square = picture.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.LANCZOS)
        whole.paste(square, (gap + i % 5 * (side + gap), gap + i // 5 * (side + gap)))
    return whole


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True, help="folder for NN.png and NN.txt")
    arguments.add_argument("--sheet", type=Path, help="PNG file with all ten pictures")
    arguments.add_argument("--seed", type=int, default=SEED)
    given = arguments.parse_args()
    drawn = pictures(given.seed)
    for number, (picture, scene) in enumerate(zip(drawn, SCENES, strict=True), start=1):
        save(picture, given.out / f"{number:02}.png")
        (given.out / f"{number:02}.txt").write_text(scene.caption + "\n", encoding="utf-8")
    if given.sheet:
        save(sheet(drawn), given.sheet)


if __name__ == "__main__":
    main()
