"""What a foreign server sends, bounded."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.outbound import wire

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=60), st.lists(st.integers(), max_size=2)
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), (7, 7), (7.0, 7), ("7", 7), (2**31 - 1, 2**31 - 1)]
    + [(value, None) for value in (2**31, 2**70, -1, 7.5, math.inf, math.nan, True, None, "x", [7], {}, "9" * 50)],
)
def test_whole_numbers(value: Any, expected: int | None) -> None:
    assert wire.whole(value) == expected


@given(ANYTHING)
def test_a_number_is_within_its_bounds_or_counts_as_not_sent(value: Any) -> None:
    found = wire.real(value, least=-5, most=100)
    assert found is None or (-5 <= found <= 100 and math.isfinite(found))
    number = wire.whole(value, most=100)
    assert number is None or (type(number) is int and 0 <= number <= 100)


@given(ANYTHING)
def test_a_text_is_one_line_that_can_be_stored(value: Any) -> None:
    found = wire.text(value, 50)
    assert len(found) <= 50
    assert found.isprintable()
    found.encode()


@pytest.mark.parametrize("value", ["", "a\x00b", "a\ud800", "a\nb", "x" * 201])
def test_a_name_that_cannot_be_one_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="identifier"):
        wire.name(value)
