"""Archives of pictures: a ZIP or tar file (also .tar.gz, .tar.bz2 and .tar.xz) is unpacked into a temporary folder.

An archive comes from outside. Nothing is written outside the folder, memory and disk space are bounded whatever the
archive says about itself, and only pictures, captions and masks are unpacked; of other files the folder gets the name.
"""

import bz2
import gzip
import lzma
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from core.errors import ArchiveInvalid
from training.data.file_kinds import archive_kind
from training.data.folders.file_names import is_hidden, is_special_folder
from training.data.folders.unpack_target import MAX_MEMBERS, PIECE, Source, Target, UnpackLimits, shown_name, too_large

_MAX_DIRECTORY_BYTES = 4 * 2**20  # the table of contents of a ZIP file, which is read as a whole
_MAX_HEADER_BYTES = 2**20  # what a tar file says about one member
_XZ_MEMORY = 128 * 2**20  # `xz -9` needs 65 MiB
_ENCRYPTED = 0x1  # flag of a ZIP member
# What the standard library raises on damaged or hostile archives.
_FAULTS = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, IndexError,
    KeyError, NotImplementedError, OverflowError, RecursionError, RuntimeError,
)  # fmt: skip


@contextmanager
def opened(place: Path, limits: UnpackLimits | None = None) -> Iterator[Path]:
    """The folder with the pictures of `place`: `place` itself, or if it is an archive, a temporary folder.

    Raises ArchiveInvalid for an archive that is not accepted.
    """
    if not place.is_file():
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="imprint-") as temporary, place.open("rb") as file:
        yield unpack(file, Path(temporary), limits or UnpackLimits())


def unpack(file: BinaryIO, into: Path, limits: UnpackLimits) -> Path:
    """Unpack an archive into the empty folder `into`; returns the folder in it that has the pictures.

    Raises ArchiveInvalid if the archive is damaged, of another kind, larger than `limits` allows, or if it has a member
    that is encrypted, a link, an archive, or outside the folder.
    """
    start = file.read(512)
    file.seek(0)
    kind = archive_kind(start)
    target = Target(into, limits)
    try:
        if kind == "a ZIP archive":
            _unpack_zip(file, target)
        elif kind in _OPENERS:
            _unpack_tar(_Stream(_OPENERS[kind](file), limits.bytes), target)
        else:
            raise ArchiveInvalid(f"the file is {kind or 'no archive'}; send a ZIP or tar archive, or a folder")
    except _FAULTS as error:
        # Do not quote the message: it may quote the file.
        raise ArchiveInvalid("the archive is damaged or incomplete; make or download it again") from error
    return _picture_root(into)


# ---- ZIP ----


class _ZipFile:
    """A file as `ZipFile` reads it, which reads the table of contents as a whole: never more than it may have."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        most = _MAX_DIRECTORY_BYTES + 1
        data = self._file.read(most if size < 0 else min(size, most))
        if len(data) == most:
            raise ArchiveInvalid(f"the archive has more than {MAX_MEMBERS} files")
        return data


def _unpack_zip(file: BinaryIO, target: Target) -> None:
    with zipfile.ZipFile(_ZipFile(file)) as archive:
        for member in archive.infolist():
            path, name = target.place(member.filename), shown_name(member.filename)
            if member.is_dir():
                target.add_folder(path)
                continue
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise ArchiveInvalid(f"{name} is a link or a device, not a file")
            if member.flag_bits & _ENCRYPTED:
                raise ArchiveInvalid(f"{name} is encrypted; send an archive without a password")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArchiveInvalid(f"{name} is compressed by method {member.compress_type}; only deflate is read")
            if not target.is_wanted(path):
                target.add(path, None)
                continue
            with archive.open(member) as source:
                target.add(path, source)


# ---- tar ----


class _Xz:
    """The unpacked content of an xz file, with a limit on the decoder's memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._machine = file, self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def read(self, size: int, /) -> bytes:
        while True:
            if self._machine.eof:  # another stream may follow
                rest = self._machine.unused_data.lstrip(b"\0") or self._file.read(PIECE).lstrip(b"\0")
                if not rest:
                    return b""
                self._machine = self._new()
            else:
                rest = self._file.read(PIECE) if self._machine.needs_input else b""
                if self._machine.needs_input and not rest:
                    raise EOFError("the end is missing")
            if data := self._machine.decompress(rest, size):
                return data


_OPENERS: dict[str, Callable[[BinaryIO], Source]] = {
    "a tar archive": lambda file: file,
    "a gzip archive": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    "a bzip2 archive": bz2.BZ2File,
    "an xz archive": _Xz,
}


class _Stream:
    """A tar file as `tarfile` reads it. It counts what is unpacked, also of members that are passed over.

    `header_left` limits what is read at once for one member's header: `tarfile` keeps all of it in memory.
    """

    def __init__(self, source: Source, limit: int) -> None:
        self._source, self._limit = source, limit
        self._at, self._held = 0, b""
        self.header_left = _MAX_HEADER_BYTES

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, /) -> int:
        """Pass over everything up to `offset`."""
        if offset < self._at:
            raise tarfile.ReadError("seeking backwards")
        while self._at < offset and self._next(min(PIECE, offset - self._at)):
            pass
        return self._at

    def read(self, size: int, /) -> bytes:
        self.header_left -= size
        if self.header_left < 0:
            raise ArchiveInvalid("the archive has a member whose header is too large")
        pieces = []
        while size > 0 and (piece := self._next(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _next(self, size: int) -> bytes:
        if not self._held:
            try:
                self._held = self._source.read(PIECE)
            except OSError as error:  # what gzip and bz2 raise on damaged files
                raise tarfile.ReadError("the compression is damaged") from error
        piece, self._held = self._held[:size], self._held[size:]
        self._at += len(piece)
        # Headers and padding are counted too, so allow for them.
        if self._at > self._limit + 2 * 512 * MAX_MEMBERS:
            raise too_large(self._limit)
        return piece


class _Content:
    """The content of the current member of a tar file."""

    def __init__(self, stream: _Stream, content: Source) -> None:
        self._stream, self._content = stream, content

    def read(self, size: int, /) -> bytes:
        self._stream.header_left = 4 * PIECE  # it is read through a buffer
        return self._content.read(size)


def _unpack_tar(stream: _Stream, target: Target) -> None:
    with tarfile.open(fileobj=stream, mode="r:") as archive:  # type: ignore[call-overload]  # it only reads and seeks
        stream.header_left = _MAX_HEADER_BYTES
        while (member := archive.next()) is not None:
            path = target.place(member.name)
            if member.isdir():
                target.add_folder(path)
            elif not member.isreg() or member.issparse():
                raise ArchiveInvalid(f"{shown_name(member.name)} is a link or a device, not a file")
            elif target.is_wanted(path) and (content := archive.extractfile(member)) is not None:
                target.add(path, _Content(stream, content))
            else:
                target.add(path, None)
            archive.members.clear()
            stream.header_left = _MAX_HEADER_BYTES


# ---- folders ----


def _picture_root(folder: Path) -> Path:
    """The folder that was packed: an archive of one folder has nothing else, apart from hidden files."""
    seen = [path for path in folder.iterdir() if not is_hidden(path)]
    if len(seen) == 1 and seen[0].is_dir() and not is_special_folder(seen[0]):
        return _picture_root(seen[0])
    return folder
