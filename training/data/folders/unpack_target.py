"""The folder that an archive is unpacked into: where a member may go, and how much there may be of it."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from core.errors import ArchiveInvalid
from core.picture_names import plain_name
from training.data.file_kinds import ARCHIVE_SUFFIXES, CAPTION_SUFFIXES, CAPTION_TABLES, SUFFIXES
from training.data.folders.file_names import is_hidden

MAX_MEMBERS = 10_000  # a thousand pictures, each with a caption, a mask and the hidden files that a Mac adds
MAX_FILE_BYTES, MAX_BYTES = 20_000_000, 500_000_000  # as the settings' defaults for pictures and jobs
_MAX_NAME_PARTS = 10
PIECE = 2**18  # bytes that are read or unpacked at a time
_READ = frozenset((*SUFFIXES, *CAPTION_SUFFIXES))


@dataclass(frozen=True)
class UnpackLimits:
    """How much an archive may hold: bytes of one file, and of all files together once they are unpacked.

    Of a larger picture one byte more is unpacked, so that the check of pictures names it as too large.
    """

    file_bytes: int = MAX_FILE_BYTES
    bytes: int = MAX_BYTES
    members: int = MAX_MEMBERS


def is_archive_name(name: str) -> bool:
    """Whether a file has a name as archives have."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


class Source(Protocol):
    """What pieces are read from."""

    def read(self, size: int, /) -> bytes: ...


class Target:
    """The folder that is filled. It counts members and bytes."""

    def __init__(self, into: Path, limits: UnpackLimits) -> None:
        self._into, self._limits = into, limits
        self._members = self._bytes = 0

    def place(self, name: str) -> Path:
        """Where the next member goes. Raises ArchiveInvalid."""
        self._members += 1
        if self._members > self._limits.members:
            raise ArchiveInvalid(f"the archive has more than {self._limits.members} files")
        shown = shown_name(name)
        path = PurePosixPath(name.replace("\\", "/"))
        parts = [part for part in path.parts if part != "."]
        if path.is_absolute() or ".." in parts or (parts and ":" in parts[0]):
            raise ArchiveInvalid(f"{shown} would be unpacked outside its folder")
        if not name.isprintable() or len(parts) > _MAX_NAME_PARTS or any(len(part.encode()) > 255 for part in parts):
            raise ArchiveInvalid(f"{shown} is not a name that a file can have here")
        return self._into.joinpath(*parts)

    def is_wanted(self, path: Path) -> bool:
        """Whether the content of a file is needed. Raises ArchiveInvalid for an archive."""
        if is_archive_name(path.name) and not is_hidden(path):
            raise ArchiveInvalid(f"{shown_name(path.name)} is an archive in the archive; unpack it first")
        return path.suffix.lower() in _READ or path.name.lower() in CAPTION_TABLES

    def add_folder(self, path: Path) -> None:
        """Make a folder. Raises ArchiveInvalid."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ArchiveInvalid(f"{shown_name(path.name)} is both a file and a folder") from None

    def add(self, path: Path, source: Source | None) -> None:
        """Write a file, at most a byte more than the limit; without a source an empty one. Raises ArchiveInvalid."""
        self.add_folder(path.parent)
        if path.exists():
            raise ArchiveInvalid(f"the archive has two files named {shown_name(path.name)}")
        left = self._limits.file_bytes + 1
        with path.open("xb") as out:
            while source is not None and left > 0 and (piece := source.read(min(left, PIECE))):
                self._bytes += len(piece)
                if self._bytes > self._limits.bytes:
                    raise too_large(self._limits.bytes)
                left -= len(piece)
                out.write(piece)


def too_large(limit: int) -> ArchiveInvalid:
    return ArchiveInvalid(f"the archive has more than {limit} bytes when it is unpacked; send it in parts")


def shown_name(name: str) -> str:
    """A member's name for messages."""
    return plain_name(name) or "a file without a name"
