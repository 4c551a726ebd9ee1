"""The rates of trainings and drawings, from the family's record or the operator's settings."""

from core.settings import Settings
from credits.price import Rate, price
from training.families.registry import FAMILIES
from training.spec import TrainSpec


def rate_of(family: str, settings: Settings) -> Rate:
    """The family's rate: the operator's credits if `IMPRINT_PRICES` has them, else the record's."""
    known = FAMILIES[family].price
    return Rate(settings.prices.get(family, known.credits), known.resolution)


def drawing_rate_of(family: str, settings: Settings) -> Rate:
    """The family's rate for drawing steps: the operator's credits if `IMPRINT_DRAWING_PRICES` has them, else 60 %.

    A step of drawing is two passes forward, with the prompt and without it; a step of training about one forward and
    two backward.
    """
    known = FAMILIES[family].price
    return Rate(settings.drawing_prices.get(family, known.credits * 3 // 5), known.resolution)


def credits_for(spec: TrainSpec, steps: int, settings: Settings) -> int:
    """The credits for `steps` steps of this recipe."""
    return price(rate_of(spec.family, settings), steps, spec.resolution)
