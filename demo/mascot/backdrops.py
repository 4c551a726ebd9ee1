"""The surroundings of the imp: sky, land, weather, plants, furniture."""

import math
from collections.abc import Sequence
from random import Random

from demo.mascot.brush import Canvas, Colour, Point, Shape, curve, ellipse, leaf, limb, mix, rgb

WHITE: Colour = (255, 255, 255)
NIGHT = rgb("#1d2350")


def hill(canvas: Canvas, heights: Sequence[float], colour: Colour, *, volume: float = 0.0) -> Shape:
    """Land from edge to edge, through these heights at equal distances. Returns its outline, for things to stand on."""
    step = canvas.width / (len(heights) - 1)
    ridge = curve([(i * step, y) for i, y in enumerate(heights)])
    outer = [(-60, heights[0]), *ridge, (canvas.width + 60, heights[-1])]
    land = [*outer, (canvas.width + 60, canvas.height + 60), (-60, canvas.height + 60)]
    canvas.paint(land, colour, volume=volume)
    return land


def cloud(canvas: Canvas, x: float, y: float, size: float, colour: Colour = WHITE, alpha: float = 0.95) -> None:
    puffs = [(-0.9, 0.1, 0.42), (-0.35, -0.2, 0.6), (0.35, -0.1, 0.5), (0.9, 0.14, 0.36), (0, 0.18, 0.6)]
    shapes = [ellipse(x + u * size, y + v * size, r * size, r * size * 0.82) for u, v, r in puffs]
    canvas.paint(shapes, colour, volume=size * 0.3, alpha=alpha, shade=mix(colour, rgb("#7f9fd0"), 0.4))


def glow(canvas: Canvas, x: float, y: float, radius: float, colour: Colour, alpha: float) -> None:
    for share in (1.0, 0.7, 0.45):
        canvas.paint(ellipse(x, y, radius * share, radius * share), colour, blur=radius * 0.2, alpha=alpha)


def shadow(canvas: Canvas, x: float, y: float, width: float, colour: Colour = NIGHT, alpha: float = 0.32) -> None:
    """A soft shadow on the ground, below a thing."""
    canvas.paint(ellipse(x, y, width, width * 0.17), colour, blur=width * 0.07, alpha=alpha)


def grass(canvas: Canvas, random: Random, low: float, high: float, colour: Colour, count: int, size: float) -> None:
    """Tufts between two heights, larger towards the front."""
    for y in sorted(random.uniform(low, high) for _ in range(count)):
        x = random.uniform(0, canvas.width)
        near = size * (0.6 + 0.7 * (y - low) / max(high - low, 1))
        tint = mix(colour, random.choice([rgb("#2d6b3f"), rgb("#e3f08a")]), random.uniform(0.1, 0.4))
        for turn in (-112, -90, -68):
            bent = turn + random.uniform(-9, 9)
            canvas.paint(leaf(x, y, near * random.uniform(0.8, 1.2), near * 0.22, bent), tint)


def flower(canvas: Canvas, x: float, y: float, size: float, colour: Colour) -> None:
    canvas.line([(x, y), (x + size * 0.1, y + size * 1.2), (x, y + size * 2.4)], rgb("#4f9a4a"), size * 0.24)
    canvas.paint(leaf(x, y + size * 2.1, size * 1.2, size * 0.5, -30), rgb("#5fae52"))
    petals = [
        ellipse(x + math.cos(a) * size * 0.62, y + math.sin(a) * size * 0.62, size * 0.46, size * 0.46)
        for a in (math.radians(72 * i - 90) for i in range(5))
    ]
    canvas.paint(petals, colour, volume=size * 0.4)
    canvas.paint(ellipse(x, y, size * 0.42, size * 0.42), rgb("#ffd75e"), volume=size * 0.25)


def stars(canvas: Canvas, random: Random, count: int, bottom: float) -> None:
    for _ in range(count):
        x, y = random.uniform(0, canvas.width), random.uniform(0, bottom)
        size = random.choice([0.8, 1.0, 1.3, 1.9])
        canvas.paint(ellipse(x, y, size, size), rgb("#fff6d8"), alpha=random.uniform(0.5, 1))
        if size > 1.5:
            glow(canvas, x, y, 6, rgb("#cdd6ff"), 0.12)
            twinkle(canvas, x, y, 6)


def twinkle(canvas: Canvas, x: float, y: float, size: float, colour: Colour = WHITE) -> None:
    tips = [
        (x + math.cos(a) * r, y + math.sin(a) * r)
        for a, r in ((math.radians(45 * i), size if i % 2 == 0 else size * 0.22) for i in range(8))
    ]
    canvas.paint(tips, colour, alpha=0.95)


def moon(canvas: Canvas, x: float, y: float, radius: float) -> None:
    glow(canvas, x, y, radius * 2.2, rgb("#9fb0ff"), 0.12)
    canvas.paint(ellipse(x, y, radius, radius), rgb("#fdf0c4"), volume=radius * 0.45, shade=rgb("#d8b98a"))
    for u, v, r in ((-0.35, -0.2, 0.2), (0.3, 0.3, 0.26), (0.2, -0.45, 0.13), (-0.25, 0.45, 0.12)):
        canvas.paint(ellipse(x + u * radius, y + v * radius, r * radius, r * radius), rgb("#e3cb94"), alpha=0.7)


def pine(canvas: Canvas, x: float, foot: float, height: float, colour: Colour, snow: float = 0.0) -> None:
    """Three tiers on a trunk; `snow` is how much of each tier is white."""
    canvas.paint(limb([(x, foot), (x, foot - height * 0.3)], height * 0.045), rgb("#6b4a3a"))
    for low, high, wide in ((0.12, 0.55, 0.27), (0.34, 0.78, 0.21), (0.58, 1.0, 0.15)):
        y, top, w = foot - height * low, foot - height * high, height * wide
        dip = height * 0.035
        hem = curve([(x + w, y), (x + w * 0.5, y + dip), (x, y), (x - w * 0.5, y + dip), (x - w, y)])
        tier = [(x, top), *hem]
        canvas.paint(tier, colour, volume=height * 0.05)
        if snow:
            drop = y - (y - top) * (1 - snow)
            cap = curve([(x + w, drop), (x + w * 0.3, drop - 9), (x, drop + 5), (x - w * 0.4, drop - 7), (x - w, drop)])
            canvas.paint([(x - w, top - 9), (x + w, top - 9), *cap], rgb("#f6fbff"), inside=tier)


def cactus(canvas: Canvas, x: float, foot: float, height: float) -> None:
    green = rgb("#5d9c62")
    thick = height * 0.11
    arms = (
        [
            (x - thick, foot - height * 0.38),
            (x - height * 0.27, foot - height * 0.42),
            (x - height * 0.27, foot - height * 0.7),
        ],
        [
            (x + thick, foot - height * 0.52),
            (x + height * 0.25, foot - height * 0.56),
            (x + height * 0.25, foot - height * 0.86),
        ],
    )
    for arm in arms:
        canvas.paint(limb(arm, thick * 0.62), green, volume=thick * 0.6)
    canvas.paint(limb([(x, foot), (x, foot - height)], thick), green, volume=thick)
    for u in (-0.45, 0, 0.45):
        canvas.line(
            [(x + u * thick, foot - 3), (x + u * thick, foot - height)], mix(green, NIGHT, 0.3), 1.4, alpha=0.55
        )
    flower_at = ellipse(x, foot - height - thick * 0.9, thick * 0.5, thick * 0.4)
    canvas.paint(flower_at, rgb("#f27a9b"), volume=thick * 0.3)


def waves(canvas: Canvas, random: Random, top: float, bottom: float, colour: Colour, count: int) -> None:
    """Short crests on water, wider towards the front."""
    for i in range(count):
        y = top + (bottom - top) * ((i + random.random()) / count) ** 1.4
        near = 0.35 + (y - top) / (bottom - top)
        x, wide = random.uniform(0, canvas.width), 26 * near
        crest = [(x - wide, y), (x - wide / 2, y - 3.4 * near), (x, y), (x + wide / 2, y - 3.4 * near), (x + wide, y)]
        canvas.line(crest, colour, 1.8 * near, alpha=0.75)


def flakes(canvas: Canvas, random: Random, count: int, bottom: float) -> None:
    for _ in range(count):
        size = random.choice([1.2, 1.7, 2.4, 3.2])
        spot = ellipse(random.uniform(0, canvas.width), random.uniform(0, bottom), size, size)
        canvas.paint(spot, WHITE, alpha=random.uniform(0.75, 1))


def speckle(canvas: Canvas, random: Random, low: float, high: float, colour: Colour, count: int, size: float) -> None:
    """Pebbles, crumbs or needles on the ground."""
    for _ in range(count):
        y = random.uniform(low, high)
        near = size * (0.5 + 0.8 * (y - low) / max(high - low, 1))
        spot = ellipse(random.uniform(0, canvas.width), y, near * random.uniform(0.8, 1.5), near * 0.55)
        canvas.paint(spot, mix(colour, NIGHT, random.uniform(0, 0.25)), alpha=0.8)


def box(x: float, y: float, width: float, height: float) -> Shape:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def rounded(x: float, y: float, width: float, height: float, radius: float) -> Shape:
    corners: list[Point] = []
    for cx, cy, start in (
        (x + width - radius, y + height - radius, 0),
        (x + radius, y + height - radius, 90),
        (x + radius, y + radius, 180),
        (x + width - radius, y + radius, 270),
    ):
        for i in range(9):
            a = math.radians(start + i * 11.25)
            corners.append((cx + radius * math.cos(a), cy + radius * math.sin(a)))
    return corners


def books(canvas: Canvas, random: Random, x: float, foot: float, width: float, height: float) -> None:
    """A row of books of uneven heights, and the board below them."""
    spines = [rgb(c) for c in ("#d9694f", "#4f8fa8", "#e6b450", "#7a9e5f", "#8a6bb0", "#f0e2c8", "#3f5f7f")]
    at = x
    while at < x + width - 8:
        thick, tall = random.uniform(9, 17), height * random.uniform(0.72, 1.0)
        colour = random.choice(spines)
        spine = box(at, foot - tall, min(thick, x + width - at), tall)
        canvas.paint(spine, colour, volume=3)
        for share in (0.18, 0.26):
            canvas.paint(box(at + 2, foot - tall * (1 - share), thick - 4, 1.6), mix(colour, WHITE, 0.6))
        at += thick + random.choice([0.6, 0.6, 0.6, 7])
    canvas.paint(box(x - 6, foot, width + 12, 7), rgb("#8a5a3c"), volume=3)


def open_book(canvas: Canvas, place: Sequence[Point], cover: Colour) -> None:
    """An open book seen from behind, as held by a reader who faces us: four corners, clockwise from the upper left."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = place
    top, low = ((ax + bx) / 2, (ay + by) / 2 + 7), ((dx + cx) / 2, (dy + cy) / 2 + 7)
    for (ux, uy), (vx, vy), lift in (((ax, ay), (dx, dy), -1), ((bx, by), (cx, cy), 1)):
        page = [(ux - lift * -3, uy - 5), (top[0], top[1] - 5), low, (vx, vy)]
        canvas.paint(page, rgb("#fff8e6"), outline=2, ink=rgb("#3d2c66"))
        canvas.paint([(ux, uy), top, low, (vx, vy)], cover, volume=7, outline=2.2, ink=rgb("#3d2c66"))
