"""Drawing with Pillow only: shapes in a movable frame, painted with soft light from the upper left.

Everything is drawn at three times the size and then reduced, which smooths the edges. Lengths are in pixels of the
finished picture.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from PIL import Image, ImageChops, ImageDraw, ImageFilter

Point = tuple[float, float]
Shape = Sequence[Point]  # a closed polygon
Colour = tuple[int, int, int]
SUPERSAMPLING = 3


def rgb(code: str) -> Colour:
    """`"#rrggbb"` as three integers."""
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """A mix of `a` with a share (0 to 1) of `b`."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


# ---- shapes ----


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Shape:
    """`turn` in degrees, clockwise as the picture is seen."""
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    angles = [2 * math.pi * i / 72 for i in range(72)]
    return [
        (x + rx * math.cos(a) * c - ry * math.sin(a) * s, y + rx * math.cos(a) * s + ry * math.sin(a) * c)
        for a in angles
    ]


def curve(points: Sequence[Point], closed: bool = False, steps: int = 14) -> Shape:
    """A smooth line through all points (Catmull-Rom)."""
    p = list(points)
    p = [p[-1], *p, p[0], p[1]] if closed else [p[0], *p, p[-1]]
    line: list[Point] = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False):
        for i in range(steps):
            t = i / steps
            x, y = (
                0.5
                * (
                    2 * b[k]
                    + (c[k] - a[k]) * t
                    + (2 * a[k] - 5 * b[k] + 4 * c[k] - d[k]) * t**2
                    + (3 * b[k] - a[k] - 3 * c[k] + d[k]) * t**3
                )
                for k in (0, 1)
            )
            line.append((x, y))
    return line if closed else [*line, p[-2]]


def limb(points: Sequence[Point], thick: float, thin: float | None = None) -> list[Shape]:
    """A soft tube along the points, from radius `thick` to radius `thin`."""
    line = curve(points)
    end = thick if thin is None else thin
    last = len(line) - 1
    radii = [thick + (end - thick) * i / last for i in range(last + 1)]
    beads = [ellipse(x, y, r, r) for (x, y), r in zip(line, radii, strict=True)]
    bands = []
    for (ax, ay), (bx, by), r, s in zip(line, line[1:], radii, radii[1:], strict=False):
        length = math.hypot(bx - ax, by - ay)
        if length > 0:
            nx, ny = (ay - by) / length, (bx - ax) / length
            bands.append(
                [
                    (ax + nx * r, ay + ny * r),
                    (bx + nx * s, by + ny * s),
                    (bx - nx * s, by - ny * s),
                    (ax - nx * r, ay - ny * r),
                ]
            )
    return beads + bands


def leaf(x: float, y: float, length: float, width: float, turn: float) -> Shape:
    """A pointed leaf that starts at (x, y) and points in the direction `turn`, in degrees: 0 is right, -90 is up."""
    steps = [i / 24 for i in range(25)]
    half = [(u, math.sin(math.pi * u**0.72)) for u in steps]
    outline = half[:-1] + [(u, -v) for u, v in reversed(half)]
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return [(x + u * length * c - v * width / 2 * s, y + u * length * s + v * width / 2 * c) for u, v in outline]


@dataclass(frozen=True)
class Frame:
    """The position of a figure: rotated, then scaled (a negative `flip` mirrors), then moved."""

    x: float
    y: float
    scale: float
    turn: float = 0.0
    flip: bool = False

    def __call__(self, shape: Sequence[Point]) -> Shape:
        c, s = math.cos(math.radians(self.turn)), math.sin(math.radians(self.turn))
        side = -1 if self.flip else 1
        return [(self.x + side * self.scale * (x * c - y * s), self.y + self.scale * (x * s + y * c)) for x, y in shape]

    def about(self, x: float, y: float, turn: float) -> "Frame":
        """A frame for a part that is rotated around a point, with this point as its origin."""
        ((px, py),) = self([(x, y)])
        return Frame(px, py, self.scale, self.turn + turn, self.flip)


# ---- paint ----


class Canvas:
    """An unfinished picture."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.image = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING))

    def finished(self) -> Image.Image:
        return self.image.reduce(SUPERSAMPLING)

    def sky(self, *colours: Colour, top: float = 0.0, bottom: float | None = None) -> None:
        """A vertical gradient through all colours between two heights."""
        high = round(top * SUPERSAMPLING)
        low = round((self.height if bottom is None else bottom) * SUPERSAMPLING)
        column = Image.new("RGB", (1, low - high))
        for y in range(low - high):
            place = y / max(low - high - 1, 1) * (len(colours) - 1)
            i = min(int(place), len(colours) - 2)
            column.putpixel((0, y), mix(colours[i], colours[i + 1], place - i))
        self.image.paste(column.resize((self.image.width, low - high)), (0, high))

    def paint(
        self,
        shapes: Shape | Iterable[Shape],
        colour: Colour,
        *,
        alpha: float = 1.0,
        blur: float = 0.0,
        volume: float = 0.0,
        outline: float = 0.0,
        ink: Colour = (0, 0, 0),
        inside: Shape | None = None,
        shade: Colour | None = None,
    ) -> None:
        """Fills the union of the shapes.

        `blur` softens the edge; `volume` is how far (in pixels) light and shadow reach in from it; `outline` is
        the width of a line of `ink` around; `inside` clips to another shape; `shade` is the shadow's colour.
        """
        polygons = _polygons(shapes)
        margin = 3 * blur + outline + 2
        left = max(math.floor(min(x for p in polygons for x, _ in p) - margin), 0)
        top = max(math.floor(min(y for p in polygons for _, y in p) - margin), 0)
        right = min(math.ceil(max(x for p in polygons for x, _ in p) + margin), self.width)
        bottom = min(math.ceil(max(y for p in polygons for _, y in p) + margin), self.height)
        if left >= right or top >= bottom:
            return
        box = (left, top, right, bottom)
        mask = _mask(polygons, box)
        at = (left * SUPERSAMPLING, top * SUPERSAMPLING)
        if outline:
            self.image.paste(ink, at, _mask(polygons, box, outline))
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(blur * SUPERSAMPLING))
        if inside is not None:
            mask = ImageChops.multiply(mask, _mask([inside], box))
        if alpha < 1:
            mask = mask.point([round(v * alpha) for v in range(256)])
        self.image.paste(_lit(polygons, box, colour, volume, shade) if volume else colour, at, mask)

    def line(self, points: Sequence[Point], colour: Colour, width: float, *, alpha: float = 1.0) -> None:
        """A round-ended line through the points."""
        self.paint(limb(points, width / 2), colour, alpha=alpha)


def _polygons(shapes: Shape | Iterable[Shape]) -> list[Shape]:
    """A list of shapes, from one shape or several. The first element of a shape is a point."""
    listed = list(shapes)
    return cast("list[Shape]", [listed] if isinstance(listed[0], tuple) else listed)


def _mask(polygons: Iterable[Shape], box: tuple[int, int, int, int], outline: float = 0.0) -> Image.Image:
    left, top, right, bottom = box
    size = ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING)
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    for polygon in polygons:
        points = [((x - left) * SUPERSAMPLING, (y - top) * SUPERSAMPLING) for x, y in polygon]
        draw.polygon(points, fill=255)
        if outline:
            width = round(2 * outline * SUPERSAMPLING)
            draw.line([*points, points[0], points[1]], fill=255, width=width, joint="curve")
    return mask


def _lit(
    polygons: Iterable[Shape], box: tuple[int, int, int, int], colour: Colour, volume: float, shade: Colour | None
) -> Image.Image:
    """The shading of a rounded thing: lighter at its upper left edge, darker at its lower right edge."""
    left, top, right, bottom = box
    margin = math.ceil(2 * volume)  # beyond the picture too: its border is not the rim of what is cut off there
    wide = _mask(polygons, (left - margin, top - margin, right + margin, bottom + margin))
    soft = wide.filter(ImageFilter.GaussianBlur(volume * 0.7 * SUPERSAMPLING))
    size = ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING)

    def rim(towards: float, strength: float) -> Image.Image:
        x = round((margin + towards * volume * 0.5) * SUPERSAMPLING)
        y = round((margin + towards * volume * 0.67) * SUPERSAMPLING)
        near = soft.crop((x, y, x + size[0], y + size[1]))
        return near.point([round((255 - v) * strength) for v in range(256)])

    lit = Image.new("RGB", size, colour)
    lit.paste(shade or mix(colour, rgb("#3b2a6b"), 0.55), (0, 0), rim(1, 0.85))
    lit.paste(mix(colour, (255, 250, 240), 0.75), (0, 0), rim(-1, 0.5))
    return lit
