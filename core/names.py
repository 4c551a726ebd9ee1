"""Names of owners: the one spelling that every name is stored in, and what no name may contain.

Two spellings of one name must not become two accounts, so every door (HTTP, page, tasks, commands, ingress, tokens)
calls `owner_name` before it looks an owner up.
"""

import re
import unicodedata
from contextlib import suppress
from typing import Annotated
from urllib.parse import unquote_to_bytes

from pydantic import AfterValidator, StringConstraints

MAX_NAME = 200  # characters
# Categories of characters that are invisible, change how their neighbours are shown, or have no meaning of their own:
# controls, formats (zero width, direction of text), halves of surrogate pairs, private use, unassigned, separators.
_REFUSED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters, marks and symbols that are shown as nothing: fillers, joiners and variation selectors.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def owner_name(given: str) -> str:
    """The spelling in which an owner's name is stored: without spaces around it, in Unicode's normal form NFC.

    Raises ValueError for a name that is empty, too long, or has a character that people cannot see or would take for a
    plain space.
    """
    name = unicodedata.normalize("NFC", given.strip())
    if not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"must have 1 to {MAX_NAME} characters")
    for number, letter in enumerate(name, start=1):
        category = unicodedata.category(letter)
        if category in _REFUSED or _BLANK.match(letter):
            raise ValueError(f"character {number} ({_describe(letter)}) is invisible or a control character")
        if category == "Zs" and letter != " ":
            raise ValueError(f"character {number} ({_describe(letter)}) looks like a plain space; use a plain space")
    return name


def is_owner_name(text: str) -> bool:
    """Whether `text` is an owner's name in the spelling that is stored."""
    try:
        return owner_name(text) == text
    except ValueError:
        return False


def _describe(letter: str) -> str:
    name = unicodedata.name(letter, "")
    return f"U+{ord(letter):04X} {name}".rstrip()


# An owner's name in a request.
OwnerName = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_NAME),
    AfterValidator(owner_name),
]


def owner_name_from_header(value: str) -> str:
    """The owner that an HTTP header names: UTF-8, and percent-encoded if the client sends ASCII only.

    `value` is the header as ASGI servers decode it, byte by byte. A `%` that is not followed by two hexadecimal digits
    stands for itself. Raises ValueError as `owner_name` does, and for bytes that are not UTF-8.
    """
    try:
        decoded = unquote_to_bytes(value.encode("latin-1")).decode("utf-8")
    except UnicodeError:
        raise ValueError("must be UTF-8; percent-encode it if your client cannot send that") from None
    return owner_name(decoded)


def intended_name(stored: str) -> str:
    """The name that an earlier version should have stored in place of `stored`.

    It read the header Imprint-Owner as Latin-1, so UTF-8 names became other names. Raises ValueError as `owner_name`.
    """
    with suppress(UnicodeError):  # it was not read as Latin-1
        stored = stored.encode("latin-1").decode("utf-8")
    return owner_name(stored)
