"""Files that are whole or not there at all, also after a power failure.

The data goes into a file beside the target, which is flushed to disk and then renamed; the folder is flushed last.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it replaces `path` when the block ends. After an error `path` is as before. Raises OSError."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with part.open("xb") as file:
            yield file
        replace_file(part, path)
    finally:
        part.unlink(missing_ok=True)


def replace_file(part: Path, path: Path) -> None:
    """Put the finished file `part` in the place of `path`, on the same file system. Raises OSError."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Flush to disk which files a folder has. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
