"""Prices are whole credits, never nothing, and what the formula says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SpecInvalid
from credits.price import RATES, price

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


def test_every_fault_is_named() -> None:
    with pytest.raises(SpecInvalid) as refusal:
        price("flux", 0, -1, {})
    assert set(refusal.value.faults) == {"family", "steps", "resolution"}
    with pytest.raises(SpecInvalid, match="less than nothing"):
        price("sd15", 1, 512, {"sd15": -1})
