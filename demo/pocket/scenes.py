"""Random scenes from a seed, drawn as pictures of 64 x 64 pixels.

Two things are never drawn, so that they are new to the model: a purple creature with horns, and anything with a leaf on
its head or its tail. The mascot of the demo is both.
"""

from dataclasses import dataclass
from random import Random

from PIL import Image

from demo.pocket.brush import Sheet
from demo.pocket.places import PAINTERS, paint_pattern, shift
from demo.pocket.things import EVERY_CREATURE, Creature, paint_shape
from demo.pocket.words import COLOUR_NAMES, COLOURS, CREATURES, EXTRAS, PATTERNS, PLACE_NAMES, SHAPES, SIZES

_CREATURE_HEIGHTS = {"small": 0.5, "big": 0.72}
_SHAPE_RADII = {"small": 0.15, "big": 0.26}
_VIEWS = 3  # that there are of each place: what captions do not say must be guessed, and slows the learning


@dataclass(frozen=True)
class Thing:
    """One thing: (x, y) is its centre, as fractions of the picture's side; `extras` is what a creature wears."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    extras: frozenset[str] = frozenset()

    @property
    def is_creature(self) -> bool:
        return self.kind in EVERY_CREATURE


@dataclass(frozen=True)
class PocketScene:
    """One creature, one or two shapes, or nothing, in a place or on a ground with a pattern and a colour."""

    things: tuple[Thing, ...]
    place: str | None
    pattern: str | None
    ground: str | None
    seed: int  # of everything that captions do not say

    def draw(self) -> Image.Image:
        """Draw a scene. The same scene gives the same pixels."""
        random = Random(self.seed)
        canvas = Sheet()
        if self.place is not None:
            PAINTERS[self.place](canvas, Random(f"{self.place} {random.randrange(_VIEWS)}"))
        else:
            paint_pattern(canvas, random, self.pattern or "plain", shift(COLOURS[self.ground or "white"], random, 6))
        for thing in self.things:
            _paint(canvas, random, thing)
        return canvas.finished()


def _paint(canvas: Sheet, random: Random, thing: Thing) -> None:
    colour = shift(COLOURS[thing.colour], random, 6)
    if not thing.is_creature:
        paint_shape(canvas, thing.kind, thing.x, thing.y, _SHAPE_RADII[thing.size], colour, 0.0)
        return
    height = _CREATURE_HEIGHTS[thing.size]
    Creature(canvas, thing.kind, thing.x, thing.y + height / 2, height, colour).draw(thing.extras)


def compose(random: Random) -> PocketScene:
    """A random scene: three in ten with one or two shapes, six with a creature, the rest with a place only."""
    which = random.random()
    if which < 0.3:
        return _shapes(random)
    if which < 0.92:
        return _creature(random)
    return PocketScene((), random.choice(PLACE_NAMES), None, None, random.getrandbits(32))


def _ground(random: Random, places: float, taken: tuple[str, ...]) -> tuple[str | None, str | None, str | None]:
    """Place, pattern and colour of the ground. No thing has the colour, because it would be invisible."""
    if random.random() < places:
        return random.choice(PLACE_NAMES), None, None
    pattern = random.choices(PATTERNS, (8, 1, 1))[0]
    return None, pattern, random.choice([name for name in COLOUR_NAMES if name not in taken])


def _shapes(random: Random) -> PocketScene:
    if random.random() < 0.6:
        size = random.choice(SIZES)
        x, y = (_spot(random), _spot(random)) if size == "small" else (_spot(random), 0.5 + _shake(random))
        things = [Thing(random.choice(SHAPES), random.choice(COLOUR_NAMES), size, x, y)]
    else:
        kinds, colours = random.sample(SHAPES, 2), random.choices(COLOUR_NAMES, k=2)
        places = _pair(random)
        things = [
            Thing(kind, colour, "small", x, y) for kind, colour, (x, y) in zip(kinds, colours, places, strict=True)
        ]
    place, pattern, ground = _ground(random, 0.15, tuple(thing.colour for thing in things))
    return PocketScene(tuple(things), place, pattern, ground, random.getrandbits(32))


def _shake(random: Random) -> float:
    return random.uniform(-0.02, 0.02)


def _spot(random: Random) -> float:
    """A position clearly in the first, the middle or the last third."""
    return random.choice([0.26, 0.5, 0.74]) + _shake(random)


def _pair(random: Random) -> list[tuple[float, float]]:
    """Two centres, clearly beside or above each other."""
    both = [(0.27 + _shake(random), 0.5 + _shake(random)), (0.73 + _shake(random), 0.5 + _shake(random))]
    if random.random() < 0.4:
        both = [(y, x) for x, y in both]
    random.shuffle(both)
    return both


def _creature(random: Random) -> PocketScene:
    size = random.choices(SIZES, (4, 6))[0]
    extras = [extra for extra in EXTRAS if random.random() < 0.16]
    if "hat" in extras and "horns" in extras:
        extras.remove("hat")
    colour = random.choice([name for name in COLOUR_NAMES if name != "purple" or "horns" not in extras])
    foot = {"small": 0.84, "big": 0.93}[size] + _shake(random)
    x = _spot(random) if size == "small" else random.choice([0.36, 0.5, 0.64]) + _shake(random)
    y = foot - _CREATURE_HEIGHTS[size] / 2
    creature = Thing(random.choice(CREATURES), colour, size, x, y, frozenset(extras))
    place, pattern, ground = _ground(random, 0.65, (colour,))
    return PocketScene((creature,), place, pattern, ground, random.getrandbits(32))
