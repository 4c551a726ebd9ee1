"""Ids that sort by time: a prefix, 48 bits of milliseconds and 80 random bits in Crockford's base 32."""

import secrets
import time
from datetime import UTC, datetime

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """`prefix_` and 26 characters; later ids sort after earlier ones (to the millisecond)."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return prefix + "_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def made_at(name: str) -> datetime | None:
    """When an id was made, to the millisecond; None for a text that is not from `new_id`."""
    _, _, letters = name.rpartition("_")
    if len(letters) != 26 or not set(letters) <= set(_ALPHABET) or letters[0] > "7":
        return None
    number = 0
    for letter in letters:
        number = number << 5 | _ALPHABET.index(letter)
    return datetime.fromtimestamp((number >> 80) / 1000, UTC)
