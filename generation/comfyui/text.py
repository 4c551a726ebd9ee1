"""Texts of servers and workflows, as messages quote them."""

from typing import Any

MAX_MESSAGE = 300  # characters quoted of one message of a server


def one_line(text: Any, most: int = MAX_MESSAGE) -> str:
    """A foreign text on one line, cut to `most` characters."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))[:most].strip()
