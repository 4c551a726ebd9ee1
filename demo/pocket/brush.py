"""Drawing with Pillow in a unit square, at four times the size and then reduced, which smooths the edges."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from demo.pocket import PIXELS
from demo.pocket.words import Colour

Point = tuple[float, float]
_SUPERSAMPLING = 3


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """A mix of `a` with a share (0 to 1) of `b`."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


class Sheet:
    """An unfinished picture; (0, 0) is its upper left corner and (1, 1) its lower right corner."""

    def __init__(self, ground: Colour = (255, 255, 255)) -> None:
        self.side = PIXELS * _SUPERSAMPLING
        self.image = Image.new("RGB", (self.side, self.side), ground)
        self.draw = ImageDraw.Draw(self.image)

    def finished(self) -> Image.Image:
        return self.image.reduce(_SUPERSAMPLING)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        s = self.side
        self.draw.ellipse([(x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s], fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        s = self.side
        self.draw.rectangle([left * s, top * s, right * s, bottom * s], fill=colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        s = self.side
        places = [(x * s, y * s) for x, y in points]
        thick = max(1, round(width * s))
        self.draw.line(places, fill=colour, width=thick, joint="curve")
        for x, y in (places[0], places[-1]):
            r = thick / 2
            self.draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)

    def gradient(self, top: Colour, bottom: Colour, until: float = 1.0) -> None:
        """Fill from the upper edge down to `until`."""
        column = Image.new("RGB", (1, 2))
        column.putdata([top, bottom])
        height = max(1, round(until * self.side))
        self.image.paste(column.resize((self.side, height), Image.Resampling.BILINEAR), (0, 0))


def around(x: float, y: float, radius: float, corners: int, turn: float = -90.0, inner: float = 1.0) -> list[Point]:
    """A regular polygon, or with `inner` below 1 a star whose every other corner lies at that share of the radius."""
    count = corners if inner == 1.0 else 2 * corners
    made = []
    for i in range(count):
        angle = math.radians(turn + 360 * i / count)
        reach = radius * (inner if inner != 1.0 and i % 2 else 1.0)
        made.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return made
