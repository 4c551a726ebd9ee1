"""How every message names a picture: by its number in the request and the name of its source."""

from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

_MAX_NAME = 100


def picture_label(position: int, name: str | None) -> str:
    """`picture 6 (rex-05.png)`. `position` counts from 0, as lists do; people count from 1."""
    return f"picture {position + 1} ({name})" if name else f"picture {position + 1}"


def source_name(reference: str) -> str | None:
    """The file name in an address, without its query, which may be a secret; None if it has none."""
    if "://" not in reference:
        return None
    try:
        path = urlsplit(reference).path
    except ValueError:
        return None
    # In S3 keys, ? and # are letters like any others, but a name cut there is still recognised.
    return plain_name(PurePosixPath(unquote(path)).name)


def plain_name(name: str | None) -> str | None:
    """A name for messages: short, on one line, and None instead of an empty one."""
    shown = "".join(letter if letter.isprintable() else " " for letter in name or "").strip()
    return f"{shown[: _MAX_NAME - 1]}…" if len(shown) > _MAX_NAME else shown or None
