"""Values that a foreign server sent, bounded before they reach the database, the ledger or a page.

JSON has numbers that no column holds (2^70, 1e999) and texts that PostgreSQL refuses (a null character, half a
surrogate pair). A value outside its bounds counts as not sent.
"""

import math
from typing import Any

MOST_STEPS = 10_000_000
MOST_INT32 = 2**31 - 1  # of an INTEGER column


def whole(value: Any, *, least: int = 0, most: int = MOST_INT32) -> int | None:
    """`value` as a whole number from `least` to `most`; None if it is none."""
    found = real(value, least=least, most=most)
    return None if found is None or not found.is_integer() else int(found)


def real(value: Any, *, least: float = 0.0, most: float) -> float | None:
    """`value` as a finite number from `least` to `most`; None if it is none. Servers send some numbers as text."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | str)
        or (isinstance(value, str) and len(value) > 40)
    ):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and least <= found <= most else None


def text(value: Any, most: int) -> str:
    """`value` as one line of at most `most` characters; characters that cannot be printed or stored become spaces."""
    return "".join(character if character.isprintable() else " " for character in str(value)[:most])


def name(value: Any, most: int = 200) -> str:
    """An identifier. Raises ValueError if it cannot be one; it is never changed, since it would name something else."""
    found = str(value)
    if not found or len(found) > most or not found.isprintable():
        raise ValueError("not an identifier")
    return found
