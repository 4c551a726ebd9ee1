"""The rate of a training, from its family's record or the operator's settings."""

from core.settings import Settings
from credits.price import Rate, price
from training.families.registry import FAMILIES
from training.spec import TrainSpec


def rate_of(family: str, settings: Settings) -> Rate:
    """The family's rate: the operator's credits if `IMPRINT_PRICES` has them, else the record's."""
    known = FAMILIES[family].price
    return Rate(settings.prices.get(family, known.credits), known.resolution)


def credits_for(spec: TrainSpec, steps: int, settings: Settings) -> int:
    """The credits for `steps` steps of this recipe."""
    return price(rate_of(spec.family, settings), steps, spec.resolution)
