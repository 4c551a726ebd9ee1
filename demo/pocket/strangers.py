"""Subjects that the pocket model is never trained on: benchmarks train LoRAs of them. Only the judge recognises them.

Results are measured on five of them. The other five are for practice: recipes are chosen on them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image

from demo.pocket.brush import Sheet, mix
from demo.pocket.places import PAINTERS
from demo.pocket.things import INK, WHITE, Creature
from demo.pocket.words import COLOURS, PLACE_NAMES, PLACES, Colour

_GREEN: Colour = (86, 176, 74)
_GOLD: Colour = (252, 206, 60)


class _Stranger(Creature):
    """New combinations of the creatures' parts, and a few parts that no creature has."""

    def imp(self) -> None:
        """A purple cat with horns and a sprout of two leaves on its head."""
        self.draw(frozenset({"horns"}))
        self._line([(0, 0.1), (0, -0.1)], 0.05, INK)
        for side in (-1, 1):
            self._ellipse(side * 0.14, -0.13, 0.13, 0.065, _GREEN)

    def king(self) -> None:
        """A brown bear with a golden crown."""
        self.draw(frozenset())
        tips = [(-0.2, -0.16), (-0.1, 0.0), (0, -0.18), (0.1, 0.0), (0.2, -0.16)]
        self._polygon([(-0.18, 0.12), *tips, (0.18, 0.12)], _GOLD)

    def penguin(self) -> None:
        """A black bird, white in front, with a red bow."""
        self.light = WHITE
        self.draw(frozenset())
        for side in (-1, 1):
            self._polygon([(0, 0.64), (side * 0.16, 0.56), (side * 0.16, 0.72)], COLOURS["red"])

    def mushroom(self) -> None:
        """A face on a stem, under a red cap with white dots."""
        self._feet(0.12)
        self._ellipse(0, 0.66, 0.2, 0.3, (246, 228, 196))
        self._ellipse(0, 0.26, 0.42, 0.26, COLOURS["red"])
        for x, y in ((-0.25, 0.28), (-0.06, 0.1), (0.22, 0.2), (0.04, 0.36)):
            self._spot(x, y, 0.065, 0.055, WHITE)
        self._face(y=0.62, apart=0.09, size=0.05)

    def bee(self) -> None:
        """A yellow ball with black stripes and two pairs of wings."""
        for side in (-1, 1):
            self._ellipse(side * 0.4, 0.42, 0.16, 0.12, (206, 232, 250))
            self._ellipse(side * 0.36, 0.66, 0.12, 0.09, (206, 232, 250))
            self._line([(side * 0.08, 0.2), (side * 0.16, 0.0)], 0.035, INK)
        self._ellipse(0, 0.55, 0.3, 0.38, COLOURS["yellow"])
        for y, wide in ((0.62, 0.29), (0.78, 0.24)):
            self._plain_box(-wide, y, wide, y + 0.08, INK)
        self._face(y=0.4)

    # ---- to practise on ----

    def wizard(self) -> None:
        """A gray bear with a tall violet hat with golden dots."""
        self.draw(frozenset())
        self._polygon([(-0.26, 0.12), (0.04, -0.42), (0.26, 0.12)], (96, 60, 170))
        for x, y in ((-0.06, 0.02), (0.06, -0.14), (0.1, 0.04)):
            self._spot(x, y, 0.035, 0.035, _GOLD)

    def snowman(self) -> None:
        """Two white balls with a carrot for a nose and a green scarf."""
        self._ellipse(0, 0.74, 0.3, 0.25, WHITE)
        self._ellipse(0, 0.32, 0.22, 0.21, WHITE)
        self._face(y=0.28, apart=0.09, size=0.045)
        self._polygon([(0, 0.34), (0, 0.42), (0.26, 0.4)], COLOURS["orange"])
        for y in (0.64, 0.76, 0.88):
            self._spot(0, y, 0.03, 0.03, INK)
        self._ellipse(0, 0.53, 0.2, 0.05, _GREEN)

    def carrot(self) -> None:
        """An orange wedge with a face, and three green leaves."""
        for x in (-0.16, 0, 0.16):
            self._line([(0, 0.16), (x, -0.12)], 0.07, _GREEN)
        self._polygon([(-0.28, 0.2), (0.28, 0.2), (0.05, 1.0), (-0.05, 1.0)], (240, 124, 36))
        for y in (0.56, 0.7):
            self._line([(-0.12, y), (0.02, y)], 0.02, INK)
        self._face(y=0.36, apart=0.11, size=0.05)

    def ladybug(self) -> None:
        """A red ball with black dots, a black head and two feelers."""
        for side in (-1, 1):
            self._line([(side * 0.08, 0.2), (side * 0.18, 0.02)], 0.035, INK)
        self._ellipse(0, 0.3, 0.2, 0.17, INK)
        self._ellipse(0, 0.62, 0.36, 0.33, COLOURS["red"])
        self._line([(0, 0.32), (0, 0.94)], 0.03, INK)
        for x, y in ((-0.2, 0.5), (0.2, 0.5), (-0.17, 0.76), (0.17, 0.76)):
            self._spot(x, y, 0.07, 0.07, INK)
        for side in (-1, 1):
            self._spot(side * 0.09, 0.28, 0.055, 0.06, WHITE)

    def pirate(self) -> None:
        """A light brown bear with a red headscarf, an eye patch and a golden belt."""
        self.draw(frozenset())
        self._polygon([(-0.3, 0.16), (-0.22, 0.02), (0.22, 0.02), (0.3, 0.16)], COLOURS["red"])
        self._spot(-0.12, 0.33, 0.09, 0.08, INK)
        self._line([(-0.28, 0.2), (0.2, 0.42)], 0.025, INK)
        self._polygon([(-0.24, 0.62), (0.24, 0.62), (0.24, 0.7), (-0.24, 0.7)], _GOLD)


@dataclass(frozen=True)
class Stranger:
    """The name of a stranger, its trigger word, and how to draw it."""

    name: str
    trigger: str
    kind: str  # of the creature that it begins as
    colour: Colour
    draw: Callable[[_Stranger], None]


STRANGERS = (
    Stranger("imp", "zorvik", "cat", (150, 100, 205), _Stranger.imp),
    Stranger("king", "mobani", "bear", (134, 86, 52), _Stranger.king),
    Stranger("penguin", "keltu", "bird", (52, 54, 70), _Stranger.penguin),
    Stranger("mushroom", "quaxo", "ghost", (236, 214, 180), _Stranger.mushroom),
    Stranger("bee", "pindel", "bird", (248, 216, 60), _Stranger.bee),
)

PRACTICE = (
    Stranger("wizard", "velimo", "bear", (150, 156, 166), _Stranger.wizard),
    Stranger("snowman", "brask", "ghost", (246, 244, 240), _Stranger.snowman),
    Stranger("carrot", "tukro", "ghost", (244, 140, 40), _Stranger.carrot),
    Stranger("ladybug", "simzo", "bird", (222, 50, 44), _Stranger.ladybug),
    Stranger("pirate", "gorvan", "bear", (186, 140, 80), _Stranger.pirate),
)


def picture(stranger: Stranger, place: str | Colour, random: Random, *, is_double: bool = False) -> Image.Image:
    """One picture of 64 x 64: the stranger at one of three positions and sizes, in a place or on a plain ground.

    Its double is the creature that it is derived from, in the same colour, without its special features.
    """
    canvas = Sheet()
    if isinstance(place, str):
        PAINTERS[place](canvas, Random(f"{place} {random.randrange(3)}"))
    else:
        canvas.box(0, 0, 1, 1, place)
    height = random.choice([0.55, 0.66, 0.74])
    x = 0.5 + random.choice([-0.16, 0.0, 0.16]) + random.uniform(-0.02, 0.02)
    foot = 0.92 + random.uniform(-0.04, 0.03)
    colour = mix(stranger.colour, WHITE if random.random() < 0.5 else INK, random.uniform(0.0, 0.06))
    look = random.choice([-1, 0, 0, 1])
    asleep = random.random() < 0.15
    body = _Stranger(canvas, stranger.kind, x, foot, height, colour, look=look, asleep=asleep)
    if is_double:
        body.draw(frozenset())
    else:
        stranger.draw(body)
    return canvas.finished()


def album(stranger: Stranger, seed: int = 0) -> list[tuple[Image.Image, str]]:
    """Ten pictures, one in each place, with captions that name the stranger by its trigger word."""
    random = Random(f"{seed} album {stranger.name}")
    return [
        (picture(stranger, place, random), f"a picture of {stranger.trigger} mascot {PLACES[place][0]}")
        for place in PLACE_NAMES
    ]
