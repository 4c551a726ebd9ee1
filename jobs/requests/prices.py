"""The rates of trainings and drawings, from the family's record or the operator's settings."""

from fractions import Fraction

from core.settings import Settings
from credits.price import Rate, price
from training.families.registry import FAMILIES
from training.spec import TrainSpec


def rate_of(spec: TrainSpec, settings: Settings) -> Rate:
    """The rate of a recipe: the operator's credits for its family if `IMPRINT_PRICES` has them, else the record's.

    Text encoders that are trained read each caption in each step, which adds their work.
    """
    known = FAMILIES[spec.family].price
    return Rate(settings.prices.get(spec.family, known.credits), known.resolution, text_work(spec))


def text_work(spec: TrainSpec) -> Fraction:
    """The work of trained text encoders in a step, as a share of a step without them at the native resolution."""
    sizes = FAMILIES[spec.family].sizes
    text = sizes.text if sizes is not None and spec.adapter.text_encoder else None
    return Fraction(0 if text is None else text.work, 1000)


def work_of_step(spec: TrainSpec) -> float:
    """The work of a step with the text encoders that the recipe trains, relative to one without them."""
    native = FAMILIES[spec.family].price.resolution
    return 1 + float(text_work(spec)) * native**2 / spec.resolution**2


def drawing_rate_of(family: str, settings: Settings) -> Rate:
    """The family's rate for drawing steps: the operator's credits if `IMPRINT_DRAWING_PRICES` has them, else 60 %.

    A step of drawing is two passes forward, with the prompt and without it; a step of training about one forward and
    two backward.
    """
    known = FAMILIES[family].price
    return Rate(settings.drawing_prices.get(family, known.credits * 3 // 5), known.resolution)


def credits_for(spec: TrainSpec, steps: int, settings: Settings) -> int:
    """The credits for `steps` steps of this recipe."""
    return price(rate_of(spec, settings), steps, spec.resolution)
