"""An object store in a folder, for one machine or a shared disk."""

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from core.errors import NotFound, ObjectExists, StoreUnavailable
from core.files import atomic_file, fsync_folder
from storage.objects import ObjectInfo, checked_folder, checked_key, checked_prefix

# Temporary files; no key starts with a dot. In the store's folder, so that a rename moves them into place.
_ON_THE_WAY = ".tmp"


class LocalStore:
    """Objects as files under `folder`, which is created on first use.

    Each object is written to a temporary file, fsynced and renamed into place; then its folder is fsynced. The writer
    locks its temporary file, so the next writer recognises and removes the files of a killed one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._tmp = self.folder / _ON_THE_WAY

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        self._put(key, lambda out: _write_all(out, data), create_only)

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> None:
        with path.open("rb") as source:
            self._put(key, lambda out: shutil.copyfileobj(source, out, 1 << 20), create_only)

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with _reading(key):
            return path.read_bytes()

    def get_file(self, key: str, path: Path) -> None:
        with _reading(key):
            source = self._path(key).open("rb")
        with source, _writing(key), atomic_file(path) as out:
            shutil.copyfileobj(source, out, 1 << 20)

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def head(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with _reading(key):
            if not path.is_file():
                raise NotFound(f"there is no object {key}")
            return ObjectInfo(path.stat().st_size, None)

    def list(self, prefix: str) -> Iterator[str]:
        checked_prefix(prefix)
        top = self.folder / prefix.rpartition("/")[0]
        found = []
        for folder, folders, files in os.walk(top):
            if Path(folder) == self.folder and _ON_THE_WAY in folders:
                folders.remove(_ON_THE_WAY)
            found += [(Path(folder) / name).relative_to(self.folder).as_posix() for name in files]
        return iter(sorted(key for key in found if key.startswith(prefix)))

    def delete(self, key: str) -> None:
        path = self._path(key)
        with suppress(NotFound), _reading(key):
            path.unlink()
            fsync_folder(path.parent)
        self._prune(path.parent)

    def delete_prefix(self, prefix: str) -> None:
        for key in self.list(checked_folder(prefix)):
            self.delete(key)

    def uri(self, key: str) -> str:
        return self._path(key).as_uri()

    def url(self, key: str, expires_s: int, name: str | None = None) -> str:
        """A `file://` address, without `name`. It does not expire; the permissions of the folder protect the file."""
        return self._path(key).as_uri()

    def _path(self, key: str) -> Path:
        return self.folder / checked_key(key)

    def _put(self, key: str, write: Callable[[BinaryIO], None], create_only: bool) -> None:
        target = self._path(key)
        if create_only and target.exists():  # fail early; the hard link below decides
            raise ObjectExists(f"there is an object {key} already")
        with _writing(key), self._on_the_way() as (out, path):
            write(out)
            out.flush()
            os.fsync(out.fileno())
            self._place(path, target, create_only)

    def _place(self, path: Path, target: Path, create_only: bool) -> None:
        with self._folders(fcntl.LOCK_SH):  # nobody removes the target's folder while it is used
            self._make_folders(target.parent)
            if create_only:
                self._link(path, target)
            else:
                path.replace(target)
            fsync_folder(target.parent)

    def _link(self, path: Path, target: Path) -> None:
        """A hard link fails atomically if the target exists; a rename would replace it."""
        try:
            target.hardlink_to(path)
        except FileExistsError as error:
            raise ObjectExists(f"there is an object {target.name} already") from error

    def _make_folders(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            fsync_folder(folder.parent)

    @contextmanager
    def _on_the_way(self) -> Iterator[tuple[BinaryIO, Path]]:
        """A new, locked temporary file, removed at the end unless it was renamed."""
        self._make_folders(self._tmp)
        self._clear_dead()
        is_there = False
        while not is_there:
            path = self._tmp / secrets.token_hex(16)
            with path.open("xb") as out:
                try:
                    fcntl.flock(out, fcntl.LOCK_SH)
                    # If this process stood still before the lock, another writer has taken the file for a dead one's.
                    is_there = os.fstat(out.fileno()).st_nlink > 0
                    if is_there:
                        yield out, path
                finally:
                    path.unlink(missing_ok=True)

    def _clear_dead(self) -> None:
        """Remove the files of killed writers: those without a lock."""
        for path in self._tmp.iterdir():
            with suppress(OSError), path.open("rb") as left:
                # A new file needs a moment to be locked; a second is plenty.
                if time.time() - os.fstat(left.fileno()).st_mtime > 1:
                    fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()

    def _prune(self, folder: Path) -> None:
        """Remove folders that became empty. If another process is writing, a later call removes them."""
        with suppress(OSError), self._folders(fcntl.LOCK_EX | fcntl.LOCK_NB):
            while folder != self.folder and self.folder in folder.parents:
                folder.rmdir()  # OSError: not empty, or gone already
                folder = folder.parent

    @contextmanager
    def _folders(self, how: int) -> Iterator[None]:
        """Lock the folder tree: shared to write into folders, exclusive to remove some."""
        lock = os.open(self._tmp, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, how)
            yield
        finally:
            os.close(lock)


def _write_all(out: BinaryIO, data: bytes) -> None:
    out.write(data)


@contextmanager
def _reading(key: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFound(f"there is no object {key}") from error
    except OSError as error:
        raise _unavailable(key, error) from error


@contextmanager
def _writing(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unavailable(key, error) from error


def _unavailable(key: str, error: OSError) -> StoreUnavailable:
    why = os.strerror(error.errno) if error.errno else "input/output error"
    return StoreUnavailable(f"the object store's folder cannot be used: {why}", {"key": key})
