"""What a training and a drawing cost, in credits."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from core.errors import SpecInvalid

_PRICED_STEPS = 1000


@dataclass(frozen=True)
class Rate:
    """Credits for 1,000 steps at a family's native resolution (in pixels, of a square)."""

    credits: int
    resolution: int


RATES: dict[str, Rate] = {
    "sd15": Rate(100, 512),
    "sdxl": Rate(400, 1024),
    "z-image": Rate(800, 1024),
}


def price(family: str, steps: int, resolution: int, prices: Mapping[str, int]) -> int:
    """The price of a training of `steps` steps on pictures of `resolution`² pixels, in credits, at least 1.

        ceil(rate × steps × resolution² / (1000 × native²))

    `rate` is the family's entry in `prices` (the settings), else in `RATES`. The computation is exact, so that the
    price shown is the price charged. Example: sd15 at 100, 1,500 steps, 768 pixels: 100 × 1500 × 768² / (1000 × 512²)
    = 337.5, so 338 credits. Raises SpecInvalid: an unknown family, a negative rate, or a number that is not positive.
    """
    faults = {
        name: "must be a positive integer"
        for name, number in (("steps", steps), ("resolution", resolution))
        if type(number) is not int or number < 1
    }
    try:
        each = price_per_step(family, resolution, prices)
    except SpecInvalid as error:
        faults |= error.faults
    if faults:
        raise SpecInvalid.of(faults)
    return max(1, ceil(steps * each))


def price_of_part(family: str, steps: int, resolution: int, prices: Mapping[str, int]) -> int:
    """The price of a training that was cancelled after `steps` steps (0 or more), rounded down.

    It is never more than `price` of the same steps. Raises SpecInvalid as `price` does.
    """
    return floor(steps * price_per_step(family, resolution, prices))


def price_per_step(family: str, resolution: int, prices: Mapping[str, int]) -> Fraction:
    """The exact price of one step, in credits. Raises SpecInvalid as `price` does."""
    faults = {}
    if family not in RATES:
        faults["family"] = f"has no price; the families with a price are {', '.join(RATES)}"
    elif (rate := prices.get(family, RATES[family].credits)) < 0:
        faults["prices"] = f"the price of {family} must not be negative"
    if faults:
        raise SpecInvalid.of(faults)
    return Fraction(rate * resolution**2, _PRICED_STEPS * RATES[family].resolution ** 2)


# Credits for 1,000 drawing steps at a family's native size. A step of drawing is two passes forward (with the prompt
# and without it), a step of training about one forward and two backward.
DRAWING_RATES: dict[str, int] = {"sd15": 60, "sdxl": 240, "z-image": 480}


def price_of_drawing(family: str, steps: int, size: tuple[int, int], prices: Mapping[str, int]) -> int:
    """The price of `steps` drawing steps, of all pictures together, at `size` (width, height) in pixels.

        ceil(rate × steps × width × height / (1000 × native²)), at least 1; 0 if the rate is 0

    `rate` is the family's entry in `prices` (the settings), else in `DRAWING_RATES`. Raises SpecInvalid: a family
    without a price, or a negative rate.
    """
    each = _per_drawing_step(family, size, prices)
    return max(1, ceil(steps * each)) if each else 0


def price_of_drawing_part(family: str, steps: int, size: tuple[int, int], prices: Mapping[str, int]) -> int:
    """The price of a drawing that was cancelled after `steps` steps (0 or more), rounded down."""
    return floor(steps * _per_drawing_step(family, size, prices))


def _per_drawing_step(family: str, size: tuple[int, int], prices: Mapping[str, int]) -> Fraction:
    if family not in DRAWING_RATES:
        raise SpecInvalid.of({"family": f"has no price; the families with a price are {', '.join(DRAWING_RATES)}"})
    rate = prices.get(family, DRAWING_RATES[family])
    if rate < 0:
        raise SpecInvalid.of({"drawing_prices": f"the price of {family} must not be negative"})
    return Fraction(rate * size[0] * size[1], _PRICED_STEPS * RATES[family].resolution ** 2)
