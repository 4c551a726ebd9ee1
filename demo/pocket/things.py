"""Things to draw: eight shapes, and seven creatures with horns, a hat or a scarf. Captions name those in `words`."""

import math

from demo.pocket.brush import Point, Sheet, around, mix
from demo.pocket.words import COLOURS, Colour

EVERY_SHAPE = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
EVERY_CREATURE = ("cat", "bear", "rabbit", "bird", "frog", "ghost", "robot")
WHITE: Colour = (255, 255, 255)
INK: Colour = (44, 36, 58)
_EDGE = 0.012  # width of the creatures' outlines


def paint_shape(canvas: Sheet, kind: str, x: float, y: float, r: float, colour: Colour, turn: float) -> None:
    """One shape around (x, y) with radius `r`, rotated by `turn` degrees, with a thin darker edge."""
    dark = mix(colour, (0, 0, 0), 0.45) if sum(colour) > 200 else (120, 120, 130)
    for reach, tone in ((r + 0.014, dark), (r, colour)):
        _shape(canvas, kind, x, y, reach, r, tone, turn)


def _shape(canvas: Sheet, kind: str, x: float, y: float, r: float, inner: float, colour: Colour, turn: float) -> None:
    if kind == "circle":
        canvas.ellipse(x, y, r, r, colour)
    elif kind == "square":
        canvas.polygon(around(x, y, r * 1.18, 4, -45 + turn), colour)
    elif kind == "diamond":
        canvas.polygon([(x, y - r * 1.2), (x + r * 0.72, y), (x, y + r * 1.2), (x - r * 0.72, y)], colour)
    elif kind == "triangle":
        canvas.polygon(around(x, y + r * 0.15, r * 1.2, 3, -90 + turn), colour)
    elif kind == "star":
        canvas.polygon(around(x, y, r * 1.2, 5, -90 + turn, 0.45), colour)
    elif kind == "cross":
        arm = r * 0.36
        canvas.box(x - r, y - arm, x + r, y + arm, colour)
        canvas.box(x - arm, y - r, x + arm, y + r, colour)
    elif kind == "heart":
        canvas.polygon(_heart(x, y, r), colour)
    elif kind == "ring":
        wide = 0.36 * inner + (r - inner)
        s = canvas.side
        at = [(x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s]
        canvas.draw.ellipse(at, outline=colour, width=max(1, round((wide + (r - inner)) * s)))


def _heart(x: float, y: float, r: float) -> list[Point]:
    made = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        u = 16 * math.sin(t) ** 3
        v = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        made.append((x + u * r / 16, y - (v + 2.5) * r / 15))
    return made


class Creature:
    """One creature with its feet at (x, y), `height` tall without ears; drawn from back to front."""

    def __init__(
        self, canvas: Sheet, kind: str, x: float, y: float, height: float, colour: Colour, *, look: int = 0,
        asleep: bool = False,
    ) -> None:  # fmt: skip
        self.canvas, self.kind, self.look, self.asleep = canvas, kind, look, asleep
        self.x, self.k, self.colour = x, height, colour
        self.top = y - height
        self.light = mix(colour, WHITE, 0.45 if sum(colour) < 600 else 0.8)
        self.dark = mix(colour, INK, 0.3)

    def draw(self, extras: frozenset[str]) -> None:
        """The whole creature. Heads are about 0.56 of its height wide, centred at 0.32 of its height."""
        if "horns" in extras:
            for side in (-1, 1):
                self._polygon([(side * 0.12, 0.1), (side * 0.25, -0.17), (side * 0.26, 0.16)], (252, 234, 196))
        getattr(self, f"_{self.kind}")()
        scarf, hat = COLOURS["blue" if self.colour[0] > 200 else "red"], COLOURS["black"]
        if "scarf" in extras:
            self._ellipse(0, 0.585, 0.24, 0.055, scarf)
            self._ellipse(0.13, 0.68, 0.06, 0.1, scarf)
        if "hat" in extras:
            self._ellipse(0, 0.09, 0.25, 0.045, hat)
            self._box(-0.15, -0.15, 0.15, 0.09, hat)
            self._plain_box(-0.15, 0.02, 0.15, 0.06, mix(hat, WHITE, 0.6))

    # ---- parts, in measures of the creature: x from its middle, y from its top, both in heights ----

    def _ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        k = self.k
        self.canvas.ellipse(self.x + x * k, self.top + y * k, rx * k + _EDGE, ry * k + _EDGE, INK)
        self.canvas.ellipse(self.x + x * k, self.top + y * k, rx * k, ry * k, colour)

    def _spot(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        k = self.k
        self.canvas.ellipse(self.x + x * k, self.top + y * k, rx * k, ry * k, colour)

    def _polygon(self, points: list[Point], colour: Colour) -> None:
        placed = [(self.x + x * self.k, self.top + y * self.k) for x, y in points]
        self.canvas.polygon(placed, colour)
        self.canvas.line([*placed, placed[0]], _EDGE * 1.4, INK)

    def _box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self._polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def _plain_box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        k = self.k
        self.canvas.box(self.x + left * k, self.top + top * k, self.x + right * k, self.top + bottom * k, colour)

    def _line(self, points: list[Point], width: float, colour: Colour) -> None:
        self.canvas.line([(self.x + x * self.k, self.top + y * self.k) for x, y in points], width * self.k, colour)

    def _feet(self, wide: float = 0.14) -> None:
        for side in (-1, 1):
            self._ellipse(side * wide, 0.95, 0.11, 0.06, self.dark)

    def _trunk(self) -> None:
        self._feet()
        for side in (-1, 1):
            self._ellipse(side * 0.24, 0.7, 0.07, 0.12, self.colour)
        self._ellipse(0, 0.74, 0.22, 0.22, self.colour)
        self._spot(0, 0.77, 0.13, 0.15, self.light)

    def _face(self, y: float = 0.32, apart: float = 0.12, size: float = 0.055) -> None:
        ink = INK if sum(self.colour) > 200 else WHITE
        shift = self.look * 0.03
        for side in (-1, 1):
            x = side * apart + shift
            if self.asleep:
                self._line([(x - size, y), (x, y + 0.03), (x + size, y)], 0.025, ink)
            else:
                self._spot(x, y, size * 1.25, size * 1.5, WHITE)
                self._spot(x + self.look * 0.015, y + 0.01, size * 0.8, size * 1.1, INK)

    def _muzzle(self, nose: Colour) -> None:
        x = self.look * 0.03
        self._spot(x, 0.44, 0.11, 0.075, self.light)
        self._spot(x, 0.41, 0.035, 0.025, nose)

    def _head(self) -> None:
        self._ellipse(0, 0.32, 0.29, 0.25, self.colour)

    # ---- kinds ----

    def _cat(self) -> None:
        self._line([(0.18, 0.9), (0.38, 0.82), (0.36, 0.6)], 0.08, INK)
        self._line([(0.18, 0.9), (0.38, 0.82), (0.36, 0.6)], 0.055, self.colour)
        self._trunk()
        for side in (-1, 1):
            self._polygon([(side * 0.27, 0.26), (side * 0.27, -0.05), (side * 0.07, 0.1)], self.colour)
        self._head()
        self._face()
        self._muzzle((240, 120, 140))
        for side in (-1, 1):
            for slope in (0.0, 0.05):
                self._line([(side * 0.13, 0.43 + slope), (side * 0.33, 0.41 + 2 * slope)], 0.018, INK)

    def _bear(self) -> None:
        self._trunk()
        for side in (-1, 1):
            self._ellipse(side * 0.22, 0.11, 0.1, 0.1, self.colour)
            self._spot(side * 0.22, 0.11, 0.05, 0.05, self.light)
        self._head()
        self._face()
        self._muzzle(INK)

    def _rabbit(self) -> None:
        self._trunk()
        for side in (-1, 1):
            self._ellipse(side * 0.12, -0.1, 0.075, 0.24, self.colour)
            self._spot(side * 0.12, -0.1, 0.035, 0.17, (250, 176, 190))
        self._head()
        self._face()
        self._muzzle((240, 120, 140))

    def _bird(self) -> None:
        for side in (-1, 1):
            self._line([(side * 0.08, 0.85), (side * 0.08, 0.98)], 0.04, (226, 130, 40))
        self._ellipse(0, 0.52, 0.33, 0.4, self.colour)
        self._spot(0, 0.68, 0.2, 0.21, self.light)
        for side in (-1, 1):
            self._polygon([(side * 0.27, 0.42), (side * 0.45, 0.72), (side * 0.24, 0.74)], self.dark)
        self._face(y=0.35)
        x = self.look * 0.04
        self._polygon([(x - 0.08, 0.45), (x + 0.08, 0.45), (x, 0.58)], (250, 176, 50))

    def _frog(self) -> None:
        for side in (-1, 1):
            self._ellipse(side * 0.27, 0.86, 0.16, 0.11, self.dark)
        self._ellipse(0, 0.72, 0.3, 0.25, self.colour)
        self._spot(0, 0.8, 0.19, 0.14, self.light)
        for side in (-1, 1):
            self._ellipse(side * 0.18, 0.2, 0.12, 0.12, self.colour)
        self._ellipse(0, 0.42, 0.36, 0.21, self.colour)
        self._face(y=0.2, apart=0.18, size=0.06)
        ink = INK if sum(self.colour) > 200 else WHITE
        self._line([(-0.2, 0.46), (-0.08, 0.52), (0.08, 0.52), (0.2, 0.46)], 0.03, ink)

    def _ghost(self) -> None:
        hem = [(0.3, 0.95), (0.2, 0.85), (0.1, 0.97), (0, 0.86), (-0.1, 0.97), (-0.2, 0.85), (-0.3, 0.95)]
        self._ellipse(0, 0.36, 0.3, 0.33, self.colour)
        self._polygon([(-0.3, 0.36), (0.3, 0.36), *hem], self.colour)
        self._plain_box(-0.29, 0.3, 0.29, 0.45, self.colour)
        ink = INK if sum(self.colour) > 200 else WHITE
        for side in (-1, 1):
            self._spot(side * 0.11 + self.look * 0.03, 0.34, 0.05, 0.085, ink)
        self._spot(self.look * 0.03, 0.52, 0.06, 0.06, ink)

    def _robot(self) -> None:
        self._line([(0, 0.1), (0, -0.06)], 0.04, INK)
        self._ellipse(0, -0.08, 0.045, 0.045, (240, 80, 70))
        for side in (-1, 1):
            self._box(side * 0.13 - 0.07, 0.86, side * 0.13 + 0.07, 0.99, self.dark)
            self._box(side * 0.29 - 0.05, 0.6, side * 0.29 + 0.05, 0.84, self.dark)
        self._box(-0.24, 0.56, 0.24, 0.88, self.colour)
        self._plain_box(-0.12, 0.64, 0.12, 0.78, self.light)
        self._box(-0.3, 0.08, 0.3, 0.53, self.colour)
        self._plain_box(-0.22, 0.17, 0.22, 0.36, (206, 240, 250))
        for side in (-1, 1):
            self._spot(side * 0.11 + self.look * 0.03, 0.265, 0.05, 0.06, INK)
        self._plain_box(-0.12, 0.42, 0.12, 0.46, INK if sum(self.colour) > 200 else WHITE)
