"""Prices are whole credits, never nothing, and what the formula says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SpecInvalid
from credits.price import RATES, price, price_of_part, price_per_step

FAMILIES = st.sampled_from(sorted(RATES))
STEPS = st.integers(1, 100_000)
RESOLUTIONS = st.integers(1, 32).map(lambda count: 64 * count)


@pytest.mark.parametrize(
    ("family", "steps", "resolution", "credits_"),
    [
        ("sd15", 1000, 512, 100),
        ("sdxl", 1000, 1024, 400),
        ("z-image", 1000, 1024, 800),
        ("sd15", 1500, 768, 338),  # 337.5, the docstring's example
        ("sd15", 1001, 512, 101),  # 100.1
        ("sdxl", 1000, 512, 100),  # a quarter of the pixels
        ("sd15", 1, 64, 1),
    ],
)
def test_the_table(family: str, steps: int, resolution: int, credits_: int) -> None:
    assert price(family, steps, resolution, {}) == credits_


def test_settings_come_before_the_table() -> None:
    assert price("sd15", 1000, 512, {"sd15": 250, "sdxl": 1}) == 250
    assert price("sd15", 1000, 512, {"sd15": 0}) == 1


@given(FAMILIES, STEPS, RESOLUTIONS)
def test_a_training_costs_a_whole_number_and_never_nothing(family: str, steps: int, resolution: int) -> None:
    rate = RATES[family]
    found = price(family, steps, resolution, {})
    assert type(found) is int
    assert found >= 1
    exact, unit = rate.credits * steps * resolution**2, 1000 * rate.resolution**2
    assert (found - 1) * unit < exact <= found * unit


@given(FAMILIES, STEPS, RESOLUTIONS)
def test_more_never_costs_less(family: str, steps: int, resolution: int) -> None:
    found = price(family, steps, resolution, {})
    assert price(family, steps + 1, resolution, {}) >= found
    assert price(family, steps, resolution + 64, {}) >= found


@pytest.mark.parametrize(("steps", "credits_"), [(0, 0), (1, 0), (9, 0), (10, 1), (19, 1), (121, 12), (1000, 100)])
def test_a_part_is_rounded_down(steps: int, credits_: int) -> None:
    assert price_of_part("sd15", steps, 512, {}) == credits_


@given(FAMILIES, STEPS, RESOLUTIONS)
def test_a_part_costs_less_than_one_credit_less_and_the_parts_never_more_than_the_whole(
    family: str, steps: int, resolution: int
) -> None:
    part, whole = price_of_part(family, steps, resolution, {}), price(family, steps, resolution, {})
    assert type(part) is int
    assert 0 <= whole - part <= 1
    assert part <= price_per_step(family, resolution, {}) * steps < part + 1


def test_every_fault_is_named() -> None:
    with pytest.raises(SpecInvalid) as refusal:
        price("flux", 0, -1, {})
    assert set(refusal.value.faults) == {"family", "steps", "resolution"}
    with pytest.raises(SpecInvalid, match="must not be negative"):
        price("sd15", 1, 512, {"sd15": -1})
