"""Large files that come in pieces: kept in a folder until they are whole, so that an upload goes on where it stopped.

A piece names its file by name, size and time of change. So an upload also goes on after a reload of the page, when the
same file is chosen again. A piece that reaches another machine finds nothing there: the page sees that the file became
shorter, and sends it whole.
"""

import fcntl
import hashlib
import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from core.settings import Settings
from web.problems import RequestRefused

PIECE_BYTES = 4 * 2**20
_KEPT_S = 3600  # after its last piece


@dataclass(frozen=True)
class FileOfPieces:
    """A file that comes in pieces. `whose`: its owner and subject."""

    whose: str
    name: str
    size: int
    modified: int

    @property
    def key(self) -> str:
        return _hash(f"{self.whose}\n{self.name}\n{self.size}\n{self.modified}")


class PartialFiles:
    """The files that are not whole yet: at most `max_bytes` in all, half of them of one owner."""

    def __init__(self, settings: Settings, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        name = f"imprint-uploads-{_hash(str(settings.home.resolve()))[:12]}"
        self._folder = Path(tempfile.gettempdir()) / name

    def append(self, caller: str, file: FileOfPieces, offset: int, piece: bytes) -> int | BinaryIO:
        """Add a piece that begins at `offset`; returns how many bytes there are, or the file, open, once it is whole.

        An open file stays readable while another request, which sent the same last piece, deletes it. A piece that
        does not begin at the end is not used. Raises RequestRefused if there are too many files already.
        """
        path = self._path(caller, file)
        if not path.exists():
            self._make_room(caller, file.size)
        with ExitStack() as opened:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            whole = opened.enter_context(os.fdopen(descriptor, "r+b"))
            fcntl.flock(whole, fcntl.LOCK_EX)  # of the same piece sent twice, one is added
            there = whole.seek(0, os.SEEK_END)
            if offset == there and there + len(piece) <= file.size:
                whole.write(piece)
                whole.flush()
            there = whole.tell()
            fcntl.flock(whole, fcntl.LOCK_UN)
            if there < file.size:
                return there
            opened.pop_all()
        whole.seek(0)
        return whole

    def delete(self, caller: str, file: FileOfPieces) -> None:
        """Forget a file."""
        self._path(caller, file).unlink(missing_ok=True)

    def sweep(self, now: float | None = None) -> None:
        """Delete files without a piece for an hour."""
        for path in self._folder.glob("*.part"):
            try:
                if path.stat().st_mtime < (now or time.time()) - _KEPT_S:
                    path.unlink()
            except FileNotFoundError:
                continue

    def _path(self, caller: str, file: FileOfPieces) -> Path:
        return self._folder / f"{_hash(caller)}.{file.key}.{file.size}.part"

    def _make_room(self, caller: str, size: int) -> None:
        """Refuse a file that does not fit beside the announced sizes of the others."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._folder.is_symlink() or self._folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{self._folder} belongs to another user")
        self.sweep()
        announced = [(path.name.split(".")[0], int(path.name.split(".")[2])) for path in self._folder.glob("*.part")]
        if sum(one for whose, one in announced if whose == _hash(caller)) + size > max(self._max_bytes // 2, size):
            raise RequestRefused("rate_limited", "you have too many unfinished uploads; finish them, or wait an hour")
        if sum(one for _, one in announced) + size > self._max_bytes:
            raise RequestRefused("unavailable", "the service has too many unfinished uploads; try again later")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
