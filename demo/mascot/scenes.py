"""The ten pictures: where the imp is, what it does there, and the captions."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image

from demo.mascot import elsewhere, outdoors
from demo.mascot.brush import Canvas


@dataclass(frozen=True)
class Scene:
    caption: str
    width: int
    height: int
    paint: Callable[[Canvas, Random], None]

    def draw(self, seed: int) -> Image.Image:
        """Draw a picture. The same seed gives the same pixels."""
        canvas = Canvas(self.width, self.height)
        self.paint(canvas, Random(f"{seed} {self.caption}"))
        return canvas.finished()


SCENES = (
    Scene("a picture of imp mascot waving on a flower meadow", 640, 640, outdoors.meadow),
    Scene("a picture of imp mascot sitting on a hill at night, looking up at the moon", 512, 704, outdoors.night),
    Scene("a picture of imp mascot jumping on a beach by the sea", 704, 528, elsewhere.beach),
    Scene("a picture of imp mascot sleeping in a bed in a room", 720, 512, elsewhere.bedroom),
    Scene("a picture of imp mascot reading a red book in front of a bookshelf", 576, 672, elsewhere.reading),
    Scene("a picture of imp mascot in the snow beside a snowman, looking left", 608, 608, outdoors.snow),
    Scene("a picture of imp mascot walking through a desert with a stick, looking right", 768, 544, elsewhere.desert),
    Scene("a picture of imp mascot floating under a red balloon at sunset", 544, 720, elsewhere.sunset),
    Scene("a close picture of imp mascot laughing among autumn leaves", 672, 672, outdoors.autumn),
    Scene("a picture of imp mascot under a red umbrella in the rain", 528, 688, outdoors.rain),
)
