"""The grounds of scenes: colours with patterns, and ten places."""

from collections.abc import Callable
from random import Random

from demo.pocket.brush import Sheet, around, mix
from demo.pocket.words import Colour

WHITE: Colour = (255, 255, 255)
NIGHT: Colour = (24, 28, 74)


def shift(colour: Colour, random: Random, by: int = 14) -> Colour:
    """A similar colour."""
    red, green, blue = (min(255, max(0, part + random.randint(-by, by))) for part in colour)
    return red, green, blue


def paint_pattern(canvas: Sheet, random: Random, pattern: str, colour: Colour) -> None:
    """A ground of one colour, with a pattern in a lighter tone, or in a darker one if the colour is light."""
    second = mix(colour, WHITE if sum(colour) < 560 else (90, 90, 110), 0.38)
    canvas.box(0, 0, 1, 1, colour)
    count = 5
    step = 1 / count
    if pattern == "striped":
        upright = False
        for i in range(count):
            low, high = (i + 0.5) * step, (i + 1) * step
            left, top, right, bottom = (low, 0.0, high, 1.0) if upright else (0.0, low, 1.0, high)
            canvas.box(left, top, right, bottom, second)
    elif pattern == "dotted":
        for i in range(count):
            for j in range(count):
                canvas.ellipse((i + 0.5) * step, (j + 0.5) * step, step * 0.27, step * 0.27, second)
    elif pattern == "checkered":
        for i in range(count):
            for j in range(i % 2, count, 2):
                canvas.box(i * step, j * step, (i + 1) * step, (j + 1) * step, second)


def _ground(canvas: Sheet, random: Random, height: float, colour: Colour, rise: float = 0.05) -> None:
    """Land or water from edge to edge below about `height`."""
    left, middle, right = (height + random.uniform(-rise, rise) for _ in range(3))
    canvas.polygon([(0, left), (0.25, (left + middle) / 2 - rise / 3), (0.5, middle), (0.75, (right + middle) / 2),
                    (1, right), (1, 1), (0, 1)], colour)  # fmt: skip


def _cloud(canvas: Sheet, x: float, y: float, size: float, colour: Colour = WHITE) -> None:
    for u, v, r in ((-0.8, 0.1, 0.5), (0, -0.15, 0.7), (0.8, 0.1, 0.5)):
        canvas.ellipse(x + u * size, y + v * size, r * size, r * size * 0.75, colour)


def _pine(canvas: Sheet, x: float, foot: float, height: float, colour: Colour) -> None:
    canvas.box(x - height * 0.05, foot - height * 0.2, x + height * 0.05, foot, (104, 72, 52))
    for low, high, wide in ((0.15, 0.65, 0.28), (0.45, 1.0, 0.2)):
        y = foot - height * low
        canvas.polygon([(x - wide * height, y), (x, foot - height * high), (x + wide * height, y)], colour)


def _meadow(canvas: Sheet, random: Random) -> None:
    canvas.gradient(shift((120, 196, 246), random), (226, 242, 252), 0.65)
    for _ in range(random.randint(0, 2)):
        _cloud(canvas, random.uniform(0.1, 0.9), random.uniform(0.08, 0.3), random.uniform(0.05, 0.1))
    _ground(canvas, random, 0.58, (160, 212, 150))
    if random.random() < 0.5:
        for x in (random.uniform(0.02, 0.2), random.uniform(0.8, 0.98)):
            _pine(canvas, x, 0.62, random.uniform(0.15, 0.25), (94, 162, 112))
    _ground(canvas, random, 0.68, shift((126, 200, 96), random))
    for _ in range(random.randint(4, 9)):
        x, y = random.random(), random.uniform(0.75, 0.98)
        petal = random.choice([(248, 150, 190), WHITE, (250, 220, 90), (170, 140, 230)])
        canvas.ellipse(x, y, 0.022, 0.022, petal)
        canvas.ellipse(x, y, 0.009, 0.009, (250, 200, 60))


def _night(canvas: Sheet, random: Random) -> None:
    canvas.gradient(shift(NIGHT, random, 8), (60, 66, 138), 0.8)
    for _ in range(random.randint(8, 16)):
        r = random.choice([0.006, 0.009, 0.013])
        canvas.ellipse(random.random(), random.uniform(0, 0.6), r, r, (250, 244, 214))
    x, y, r = random.choice([random.uniform(0.12, 0.3), random.uniform(0.7, 0.88)]), random.uniform(0.12, 0.25), 0.1
    canvas.ellipse(x, y, r, r, (252, 238, 190))
    canvas.ellipse(x - 0.03, y - 0.02, 0.02, 0.02, (226, 206, 150))
    canvas.ellipse(x + 0.04, y + 0.03, 0.025, 0.025, (226, 206, 150))
    _ground(canvas, random, 0.72, (38, 66, 84), 0.08)


def _beach(canvas: Sheet, random: Random) -> None:
    canvas.gradient(shift((110, 200, 248), random), (214, 240, 252), 0.5)
    if random.random() < 0.6:
        canvas.ellipse(random.choice([0.15, 0.85]), 0.14, 0.08, 0.08, (255, 228, 110))
    canvas.box(0, 0.44, 1, 0.75, shift((50, 140, 200), random))
    for _ in range(random.randint(4, 7)):
        x, y = random.random(), random.uniform(0.48, 0.62)
        canvas.line([(x - 0.06, y), (x + 0.06, y)], 0.012, (170, 218, 240))
    _ground(canvas, random, 0.69, WHITE, 0.03)
    _ground(canvas, random, 0.72, shift((242, 216, 160), random, 8), 0.03)


def _room(canvas: Sheet, random: Random) -> None:
    wall = shift(random.choice([(250, 222, 190), (208, 222, 240), (244, 206, 210)]), random, 8)
    canvas.box(0, 0, 1, 1, wall)
    x = random.choice([0.1, 0.62])
    canvas.box(x, 0.1, x + 0.28, 0.42, (250, 250, 244))
    canvas.box(x + 0.025, 0.125, x + 0.255, 0.395, (150, 208, 246))
    canvas.box(x + 0.13, 0.1, x + 0.15, 0.42, (250, 250, 244))
    canvas.box(0, 0.68, 1, 1, shift((176, 122, 82), random))
    canvas.box(0, 0.66, 1, 0.69, (250, 246, 236))
    canvas.ellipse(0.5, 0.88, 0.42, 0.09, shift((120, 150, 200), random, 20))


def _library(canvas: Sheet, random: Random) -> None:
    canvas.box(0, 0, 1, 1, (112, 72, 48))
    spines = [(217, 105, 79), (79, 143, 168), (230, 180, 80), (122, 158, 95), (138, 107, 176), (240, 226, 200)]
    for top in (0.03, 0.27, 0.51):
        canvas.box(0.03, top, 0.97, top + 0.21, (78, 48, 34))
        x = 0.04
        while x < 0.92:
            thick = random.uniform(0.045, 0.075)
            canvas.box(
                x, top + random.uniform(0.02, 0.06), min(x + thick - 0.008, 0.96), top + 0.21, random.choice(spines)
            )
            x += thick
    canvas.box(0, 0.76, 1, 1, shift((190, 140, 98), random))


def _snow(canvas: Sheet, random: Random) -> None:
    canvas.gradient(shift((170, 198, 226), random), (226, 236, 246), 0.7)
    for x in (random.uniform(0.05, 0.22), random.uniform(0.78, 0.95)):
        _pine(canvas, x, 0.66, random.uniform(0.3, 0.45), (70, 124, 116))
    _ground(canvas, random, 0.65, (244, 249, 255))
    for _ in range(random.randint(12, 20)):
        canvas.ellipse(random.random(), random.uniform(0, 0.7), 0.012, 0.012, WHITE)


def _desert(canvas: Sheet, random: Random) -> None:
    canvas.gradient(shift((250, 214, 150), random, 8), (254, 238, 206), 0.6)
    canvas.ellipse(random.uniform(0.15, 0.85), 0.16, 0.09, 0.09, (255, 246, 200))
    _ground(canvas, random, 0.55, (232, 178, 108), 0.08)
    x = random.choice([random.uniform(0.08, 0.2), random.uniform(0.8, 0.92)])
    green = (92, 152, 96)
    canvas.line([(x, 0.72), (x, 0.4)], 0.07, green)
    canvas.line([(x, 0.6), (x - 0.09, 0.58), (x - 0.09, 0.48)], 0.04, green)
    canvas.line([(x, 0.55), (x + 0.09, 0.53), (x + 0.09, 0.42)], 0.04, green)
    _ground(canvas, random, 0.7, shift((222, 160, 92), random, 8))


def _sunset(canvas: Sheet, random: Random) -> None:
    canvas.gradient(shift((120, 80, 150), random, 8), (255, 160, 90), 0.7)
    canvas.ellipse(random.uniform(0.2, 0.8), 0.58, 0.14, 0.14, (255, 222, 130))
    for _ in range(random.randint(1, 3)):
        _cloud(canvas, random.random(), random.uniform(0.1, 0.4), random.uniform(0.05, 0.1), (240, 140, 130))
    _ground(canvas, random, 0.68, (112, 60, 100), 0.06)
    _ground(canvas, random, 0.82, (70, 44, 84), 0.04)


def _forest(canvas: Sheet, random: Random) -> None:
    canvas.gradient((250, 226, 170), (244, 190, 120), 1.0)
    for x in (
        random.uniform(0.02, 0.2),
        random.uniform(0.25, 0.45),
        random.uniform(0.55, 0.75),
        random.uniform(0.8, 0.98),
    ):
        canvas.box(x - 0.03, 0.1, x + 0.03, 0.75, (120, 82, 60))
    leaves = [(226, 110, 48), (240, 168, 60), (198, 72, 44), (214, 138, 54)]
    for _ in range(14):
        canvas.ellipse(random.random(), random.uniform(-0.02, 0.22), 0.1, 0.08, random.choice(leaves))
    _ground(canvas, random, 0.72, shift((188, 112, 60), random, 8))
    for _ in range(10):
        canvas.ellipse(random.random(), random.uniform(0.74, 1.0), 0.03, 0.018, random.choice(leaves))


def _rain(canvas: Sheet, random: Random) -> None:
    canvas.gradient(shift((96, 108, 132), random, 8), (150, 164, 186), 0.75)
    for _ in range(3):
        _cloud(canvas, random.random(), random.uniform(0.03, 0.12), random.uniform(0.1, 0.16), (78, 88, 110))
    _ground(canvas, random, 0.72, shift((88, 110, 112), random, 8), 0.03)
    for x in (random.random(), random.random()):
        canvas.ellipse(x, random.uniform(0.82, 0.95), 0.14, 0.025, (136, 160, 182))
    for _ in range(26):
        x, y = random.random(), random.uniform(0, 0.95)
        canvas.line([(x, y), (x - 0.02, y + 0.07)], 0.008, (186, 206, 230))


PAINTERS: dict[str, Callable[[Sheet, Random], None]] = {
    "meadow": _meadow, "night": _night, "beach": _beach, "room": _room, "library": _library, "snow": _snow,
    "desert": _desert, "sunset": _sunset, "forest": _forest, "rain": _rain,
}  # fmt: skip

__all__ = ["PAINTERS", "around", "paint_pattern", "shift"]
