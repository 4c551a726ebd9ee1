"""What a training sees of a picture: the size that it is trained at, and the part of the picture that is kept."""

from dataclasses import dataclass
from functools import cache
from math import log

# A picture that is enlarged this much or more is too small: it would teach blur. Below, it gets a warning.
MAX_ENLARGEMENT = 1.3


@dataclass(frozen=True)
class Frame:
    """The size at which pictures are trained: `resolution`, as squares or in the shapes of `buckets`."""

    resolution: int
    aspect_buckets: bool = False


@dataclass(frozen=True)
class Crop:
    """A part of a picture, as shares of its width and height: the part that its owner wants trained."""

    left: float
    top: float
    right: float
    bottom: float

    def to_list(self) -> list[float]:
        """The four shares."""
        return [self.left, self.top, self.right, self.bottom]

    @property
    def is_valid(self) -> bool:
        """Whether it is a part, and not too thin."""
        return (
            0 <= self.left < self.right <= 1
            and 0 <= self.top < self.bottom <= 1
            and min(self.right - self.left, self.bottom - self.top) >= 0.01
        )


WHOLE = Crop(0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class View:
    """What a training sees of one picture: a box in its pixels, and the size that the box is scaled to."""

    left: float
    top: float
    right: float
    bottom: float
    width: int
    height: int

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The box as Pillow wants it."""
        return self.left, self.top, self.right, self.bottom

    @property
    def enlargement(self) -> float:
        """How much the box is enlarged; below 1 it is made smaller."""
        return max(self.width / max(self.right - self.left, 1e-9), self.height / max(self.bottom - self.top, 1e-9))


@cache
def buckets(resolution: int) -> tuple[tuple[int, int], ...]:
    """The sizes (width, height) of about `resolution`² pixels, with sides that are multiples of 64.

    From 1:4 to 4:1; each width has the height that comes nearest to the area. Very small resolutions have only the
    square.
    """
    sides = range(64, 2 * resolution + 1, 64)
    found = {(resolution, resolution)}
    for width in sides:
        height = max(64, round(resolution * resolution / width / 64) * 64)
        # At small resolutions rounding may change the area a lot: allow up to a quarter.
        if resolution // 2 <= width and height in sides and 0.8 <= width * height / resolution**2 <= 1.25:
            found |= {(width, height), (height, width)}
    return tuple(sorted(found))


def view_of(width: int, height: int, frame: Frame, crop: Crop = WHOLE) -> View:
    """What is seen of a picture of `width` × `height`: the middle of `crop`, in the shape that it is trained at."""
    wide, high = (crop.right - crop.left) * width, (crop.bottom - crop.top) * height
    target = _nearest_bucket(wide / high, frame.resolution) if frame.aspect_buckets else (frame.resolution,) * 2
    scale = min(wide / target[0], high / target[1])
    left = crop.left * width + (wide - target[0] * scale) / 2
    top = crop.top * height + (high - target[1] * scale) / 2
    right, bottom = min(width, left + target[0] * scale), min(height, top + target[1] * scale)
    return View(max(0.0, left), max(0.0, top), right, bottom, *target)


def _nearest_bucket(aspect: float, resolution: int) -> tuple[int, int]:
    return min(buckets(resolution), key=lambda b: (abs(log(b[0] / b[1] / aspect)), -b[0] * b[1], b))
