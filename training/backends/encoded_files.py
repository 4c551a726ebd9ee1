"""The files of the cache of encodings: which picture each was made of, and deletion with that picture. No torch."""

import json
import struct
from collections.abc import Callable, Collection
from pathlib import Path

MADE_OF = "made_of"  # the entry of a file's metadata with the SHA-256 of the prepared picture
_MAX_HEADER_BYTES = 1_000_000
_AT_ONCE = 500


def delete_unused(folder: Path, used_of: Callable[[Collection[str]], Collection[str]]) -> int:
    """Delete the encodings of pictures that nothing uses. `used_of` returns those of some hashes that are used.

    Files of earlier versions, which do not name their picture, are deleted too: they can be computed again. Returns how
    many were deleted.
    """
    deleted = 0
    batch: dict[Path, str] = {}
    for path in folder.glob("*/*.safetensors"):
        batch[path] = _made_of(path)
        if len(batch) == _AT_ONCE:
            deleted += _delete(batch, used_of)
            batch = {}
    return deleted + _delete(batch, used_of)


def _delete(batch: dict[Path, str], used_of: Callable[[Collection[str]], Collection[str]]) -> int:
    used = used_of({name for name in batch.values() if name}) if batch else ()
    gone = [path for path, name in batch.items() if name not in used]
    for path in gone:
        path.unlink(missing_ok=True)
    return len(gone)


def _made_of(path: Path) -> str:
    """The hash of the picture; empty if the file does not say so or is damaged."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        return str(header["__metadata__"][MADE_OF])
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return ""
