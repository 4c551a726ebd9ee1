"""Prices are whole credits, never nothing, and what the formula says."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SpecInvalid
from core.settings import Settings
from credits.price import Rate, price, price_of_part, price_per_step
from jobs.requests.prices import credits_for, rate_of, work_of_step
from training.families.registry import FAMILIES
from training.spec import TrainSpec

WORK = 17  # thousandths of a step of sd15 at 512 px, by counting
SD15, SDXL = Rate(100, 512), Rate(400, 1024)
RATES = st.sampled_from([Rate(family.price.credits, family.price.resolution) for family in FAMILIES.values()])
STEPS = st.integers(1, 100_000)
RESOLUTIONS = st.integers(1, 32).map(lambda count: 64 * count)


@pytest.mark.parametrize(
    ("rate", "steps", "resolution", "credits_"),
    [
        (SD15, 1000, 512, 100),
        (SDXL, 1000, 1024, 400),
        (SD15, 1500, 768, 338),  # 337.5, the docstring's example
        (SD15, 1001, 512, 101),  # 100.1
        (SDXL, 1000, 512, 100),  # a quarter of the pixels
        (SD15, 1, 64, 1),
        (Rate(0, 512), 1000, 512, 1),
    ],
)
def test_the_formula(rate: Rate, steps: int, resolution: int, credits_: int) -> None:
    assert price(rate, steps, resolution) == credits_


def test_settings_come_before_the_record() -> None:
    settings = Settings(_env_file=None, prices={"sd15": 250})
    assert rate_of(spec("sd15"), settings) == Rate(250, 512)
    assert rate_of(spec("sdxl"), settings) == SDXL


def spec(family: str, **more: Any) -> TrainSpec:
    return TrainSpec.model_validate({"base_model": family, "trigger_word": "sks", "seed": 1, **more})


def test_text_encoders_cost_their_share_of_a_step_at_every_resolution() -> None:
    settings = Settings(_env_file=None, prices={"sd15": 1000})
    for resolution, share in ((512, 1), (256, Fraction(1, 4))):
        plain, trained = (spec("sd15", resolution=resolution, adapter={"text_encoder": on}) for on in (False, True))
        assert credits_for(plain, 1000, settings) == 1000 * share
        assert credits_for(trained, 1000, settings) == 1000 * share + WORK
        assert work_of_step(plain) == 1
        assert work_of_step(trained) == pytest.approx(1 + WORK / 1000 / share)


@given(RATES, STEPS, RESOLUTIONS)
def test_a_training_costs_a_whole_number_and_never_nothing(rate: Rate, steps: int, resolution: int) -> None:
    found = price(rate, steps, resolution)
    assert type(found) is int
    assert found >= 1
    exact, unit = rate.credits * steps * resolution**2, 1000 * rate.resolution**2
    assert (found - 1) * unit < exact <= found * unit


@given(RATES, STEPS, RESOLUTIONS)
def test_more_never_costs_less(rate: Rate, steps: int, resolution: int) -> None:
    found = price(rate, steps, resolution)
    assert price(rate, steps + 1, resolution) >= found
    assert price(rate, steps, resolution + 64) >= found


@pytest.mark.parametrize(("steps", "credits_"), [(0, 0), (1, 0), (9, 0), (10, 1), (19, 1), (121, 12), (1000, 100)])
def test_a_part_is_rounded_down(steps: int, credits_: int) -> None:
    assert price_of_part(SD15, steps, 512) == credits_


@given(RATES, STEPS, RESOLUTIONS)
def test_a_part_costs_less_than_one_credit_less_and_the_parts_never_more_than_the_whole(
    rate: Rate, steps: int, resolution: int
) -> None:
    part, whole = price_of_part(rate, steps, resolution), price(rate, steps, resolution)
    assert type(part) is int
    assert 0 <= whole - part <= 1
    assert part <= price_per_step(rate, resolution) * steps < part + 1


def test_every_fault_is_named() -> None:
    with pytest.raises(SpecInvalid) as refusal:
        price(SD15, 0, -1)
    assert set(refusal.value.faults) == {"steps", "resolution"}
    with pytest.raises(SpecInvalid, match="must not be negative"):
        price(Rate(-1, 512), 1, 512)
