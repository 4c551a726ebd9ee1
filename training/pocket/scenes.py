"""Scenes: what is where. Any number of them from a seed, drawn as pictures of 64 x 64 pixels.

Two things are never drawn, so that they stay new to the model: a purple creature with horns, and anything with a leaf
on its head or its tail. The mascot of the demo is both.
"""

from dataclasses import dataclass
from random import Random

from PIL import Image

from training.pocket.brush import Canvas
from training.pocket.places import PAINTERS, paint_pattern, shift
from training.pocket.things import Creature, accessory_colours, paint_shape
from training.pocket.words import COLOUR_NAMES, COLOURS, CREATURES, EXTRAS, PATTERNS, PLACE_NAMES, SHAPES, SIZES

_CREATURE_HEIGHTS = {"small": 0.34, "medium": 0.5, "big": 0.68}
_SHAPE_RADII = {"small": 0.1, "medium": 0.16, "big": 0.26}


@dataclass(frozen=True)
class Thing:
    """One thing: (x, y) is its middle, in shares of the picture's side; `extras` are what a creature wears."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    extras: frozenset[str] = frozenset()

    @property
    def is_creature(self) -> bool:
        return self.kind in CREATURES


@dataclass(frozen=True)
class Scene:
    """At most two things of different kinds, in a place or on a ground with a pattern and a colour."""

    things: tuple[Thing, ...]
    place: str | None
    pattern: str | None
    ground: str | None
    seed: int  # of everything that captions do not say

    def draw(self) -> Image.Image:
        """The same scene, the same pixels."""
        random = Random(self.seed)
        canvas = Canvas()
        if self.place is not None:
            PAINTERS[self.place](canvas, random)
        else:
            paint_pattern(canvas, random, self.pattern or "plain", shift(COLOURS[self.ground or "white"], random, 10))
        for thing in self.things:
            _paint(canvas, random, thing)
        return canvas.finished()


def _paint(canvas: Canvas, random: Random, thing: Thing) -> None:
    colour = shift(COLOURS[thing.colour], random, 12)
    if not thing.is_creature:
        turn = random.uniform(-12, 12)
        radius = _SHAPE_RADII[thing.size] * random.uniform(0.92, 1.08)
        paint_shape(canvas, thing.kind, thing.x, thing.y, radius, colour, turn)
        return
    height = _CREATURE_HEIGHTS[thing.size] * random.uniform(0.94, 1.06)
    creature = Creature(canvas, random, thing.kind, thing.x, thing.y + height / 2, height, colour)
    creature.draw(thing.extras, *accessory_colours(random))


def compose(random: Random) -> Scene:
    """Any scene: two in five of shapes, half with a creature or two, the rest of a place alone."""
    which = random.random()
    if which < 0.4:
        return _shapes(random)
    if which < 0.92:
        return _creatures(random)
    return Scene((), random.choice(PLACE_NAMES), None, None, random.getrandbits(32))


def _ground(random: Random, places: float, taken: tuple[str, ...]) -> tuple[str | None, str | None, str | None]:
    """Place, pattern and colour of the ground; the colour is none that a thing has, or it would not be seen."""
    if random.random() < places:
        return random.choice(PLACE_NAMES), None, None
    pattern = random.choices(PATTERNS, (6, 2, 2, 2))[0]
    return None, pattern, random.choice([name for name in COLOUR_NAMES if name not in taken])


def _shapes(random: Random) -> Scene:
    if random.random() < 0.45:
        size = random.choice(SIZES)
        x, y = _spot(random), _spot(random)
        things = [Thing(random.choice(SHAPES), random.choice(COLOUR_NAMES), size, x, y)]
    else:
        kinds, colours = random.sample(SHAPES, 2), random.choices(COLOUR_NAMES, k=2)
        places = _pair(random)
        things = [
            Thing(kind, colour, random.choice(("small", "medium")), x, y)
            for kind, colour, (x, y) in zip(kinds, colours, places, strict=True)
        ]
    place, pattern, ground = _ground(random, 0.15, tuple(thing.colour for thing in things))
    return Scene(tuple(things), place, pattern, ground, random.getrandbits(32))


def _spot(random: Random) -> float:
    """Clearly in the first, the middle or the last third."""
    return random.choice([0.26, 0.5, 0.74]) + random.uniform(-0.04, 0.04)


def _pair(random: Random) -> list[tuple[float, float]]:
    """Two middles, clearly beside or above one another."""
    near, far = 0.27 + random.uniform(-0.04, 0.04), 0.73 + random.uniform(-0.04, 0.04)
    other = 0.5 + random.uniform(-0.1, 0.1)
    both = [(near, other), (far, other + random.uniform(-0.05, 0.05))]
    if random.random() < 0.4:
        both = [(y, x) for x, y in both]
    random.shuffle(both)
    return both


def _creatures(random: Random) -> Scene:
    first = _creature(random, random.choices(SIZES, (2, 5, 5))[0], _spot(random) if random.random() < 0.6 else 0.5)
    things = [first]
    if random.random() < 0.2:
        left = random.random() < 0.5
        first = _creature(random, "medium", 0.27 if left else 0.73)
        x, y = (0.76 if left else 0.24) + random.uniform(-0.04, 0.04), 0.68 + random.uniform(-0.06, 0.06)
        if random.random() < 0.5:
            second = Thing(random.choice(SHAPES), random.choice(COLOUR_NAMES), "small", x, y)
        else:
            second = _creature(random, "medium", x)
            while second.kind == first.kind:
                second = _creature(random, "medium", x)
        things = [first, second]
    place, pattern, ground = _ground(random, 0.75, tuple(thing.colour for thing in things))
    return Scene(tuple(things), place, pattern, ground, random.getrandbits(32))


def _creature(random: Random, size: str, x: float) -> Thing:
    extras = [extra for extra in EXTRAS if random.random() < 0.2]
    if "hat" in extras and "horns" in extras:
        extras.remove("hat")
    colour = random.choice([name for name in COLOUR_NAMES if name != "purple" or "horns" not in extras])
    foot = {"small": 0.8, "medium": 0.86, "big": 0.93}[size] + random.uniform(-0.03, 0.03)
    x = min(0.74, max(0.26, x + random.uniform(-0.03, 0.03))) if size != "big" else 0.5 + (x - 0.5) * 0.55
    return Thing(random.choice(CREATURES), colour, size, x, foot - _CREATURE_HEIGHTS[size] / 2, frozenset(extras))
