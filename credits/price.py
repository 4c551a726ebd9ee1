"""What a training and a drawing cost, in credits."""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from core.errors import SpecInvalid

_PRICED_STEPS = 1000


@dataclass(frozen=True)
class Rate:
    """Credits for 1,000 steps at a native resolution (in pixels, of a square).

    beside: the work in each step that does not depend on the resolution, as a share of a step at the native one.
    """

    credits: int
    resolution: int
    beside: Fraction = Fraction(0)


def price(rate: Rate, steps: int, resolution: int) -> int:
    """The price of a training of `steps` steps on pictures of `resolution`² pixels, in credits, at least 1.

        ceil(rate × steps × (resolution² / native² + beside) / 1000)

    The computation is exact, so that the price shown is the price charged. Example: 100 credits at 512 pixels, 1,500
    steps, 768 pixels: 100 × 1500 × 768² / (1000 × 512²) = 337.5, so 338 credits. Raises SpecInvalid: a negative rate,
    or a number that is not positive.
    """
    faults = {
        name: "must be a positive integer"
        for name, number in (("steps", steps), ("resolution", resolution))
        if type(number) is not int or number < 1
    }
    if faults:
        raise SpecInvalid.of(faults)
    return max(1, ceil(steps * price_per_step(rate, resolution)))


def price_of_part(rate: Rate, steps: int, resolution: int) -> int:
    """The price of a training that was cancelled after `steps` steps (0 or more), rounded down.

    It is never more than `price` of the same steps. Raises SpecInvalid as `price` does.
    """
    return floor(steps * price_per_step(rate, resolution))


def price_per_step(rate: Rate, resolution: int) -> Fraction:
    """The exact price of one step, in credits. Raises SpecInvalid for a negative rate."""
    if rate.credits < 0:
        raise SpecInvalid.of({"prices": "a price must not be negative"})
    return Fraction(rate.credits, _PRICED_STEPS) * (Fraction(resolution**2, rate.resolution**2) + rate.beside)


def price_of_drawing(rate: Rate, steps: int, size: tuple[int, int]) -> int:
    """The price of `steps` drawing steps, of all pictures together, at `size` (width, height) in pixels.

        ceil(rate × steps × width × height / (1000 × native²)), at least 1; 0 if the rate is 0

    Raises SpecInvalid for a negative rate.
    """
    each = _per_drawing_step(rate, size)
    return max(1, ceil(steps * each)) if each else 0


def price_of_drawing_part(rate: Rate, steps: int, size: tuple[int, int]) -> int:
    """The price of a drawing that was cancelled after `steps` steps (0 or more), rounded down."""
    return floor(steps * _per_drawing_step(rate, size))


def _per_drawing_step(rate: Rate, size: tuple[int, int]) -> Fraction:
    if rate.credits < 0:
        raise SpecInvalid.of({"drawing_prices": "a price must not be negative"})
    return Fraction(rate.credits * size[0] * size[1], _PRICED_STEPS * rate.resolution**2)
