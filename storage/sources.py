"""Where pictures come from: an address over the guarded client, a file under an allowed root, an allowed bucket.

What a request names is a *reference*: `https://…`, `http://…`, `file://…` or `s3://bucket/key`. Messages name its
scheme and host, or the file's name, never a query: a presigned address is a key to somebody's bucket.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from core.errors import (
    AddressRefused,
    AnswerRefused,
    ImageRefused,
    ImageUnreachable,
    NotFound,
    ObjectTooLarge,
    StoreUnavailable,
    Unreachable,
)
from core.guard import Guard
from storage.objects import ForeignReader, ObjectStore

_MAX_REFERENCE = 8192


class Sources:
    """Fetches what references name. May be used from several threads.

    `file_roots` are the folders that `file://` may name files under, wherever symbolic links lead.
    `s3_buckets` may be read besides the store's own (outside its prefix), with the store's credentials.
    """

    def __init__(
        self,
        *,
        guard: Guard,
        store: ObjectStore,
        file_roots: Sequence[Path] = (),
        s3_buckets: Sequence[str] = (),
    ) -> None:
        self._guard = guard
        self._s3 = store if isinstance(store, ForeignReader) else None
        self._roots = [root.resolve() for root in file_roots]
        self._named_roots = [*self._roots, *(root.absolute() for root in file_roots)]
        self._buckets = {*s3_buckets, *([self._s3.bucket] if self._s3 else [])}

    def refusal_reason(self, reference: str) -> str | None:
        """Why `reference` would be refused whatever is there, by its looks and without any I/O; None if not."""
        try:
            self._check(reference)
        except (ImageRefused, AddressRefused) as error:
            return error.message
        return None

    def fetch(self, reference: str, *, max_bytes: int) -> bytes:
        """The bytes that `reference` names.

        Raises ImageRefused for a place that we do not read from or a thing that is not there or too large;
        ImageUnreachable, which may be retried, when it did not answer.
        """
        try:
            scheme = self._check(reference)
            if scheme == "file":
                return self._from_file(_file_path(reference), max_bytes)
            if scheme == "s3":
                return self._from_s3(reference, max_bytes)
            return self._guard.get_bytes(reference, max_bytes)
        except (AddressRefused, AnswerRefused) as error:
            raise ImageRefused(error.message, error.details) from None
        except Unreachable as error:
            raise ImageUnreachable(error.message, error.details) from None

    def _check(self, reference: str) -> str:
        """The scheme; raises ImageRefused or AddressRefused."""
        if len(reference) > _MAX_REFERENCE:
            raise ImageRefused(f"the reference is longer than {_MAX_REFERENCE} characters")
        scheme = reference.partition("://")[0].lower() if "://" in reference else ""
        if scheme == "file":
            path = _file_path(reference)
            if not any(Path(os.path.normpath(path)).is_relative_to(root) for root in self._named_roots):
                raise ImageRefused(f"the file {_name(path)} is not under an allowed root")
        elif scheme == "s3":
            self._check_s3(reference)
        elif scheme in ("http", "https"):
            self._guard.check(reference)
        else:
            raise ImageRefused("a picture is named by https://, http://, s3:// or file://")
        return scheme

    def _check_s3(self, reference: str) -> None:
        bucket, key = _s3_parts(reference)
        if not bucket or not key:
            raise ImageRefused("an S3 picture is named as s3://bucket/key")
        if self._s3 is None:
            raise ImageRefused("pictures on S3 need the object store to be on S3")
        if bucket not in self._buckets:
            raise ImageRefused(f"the bucket {bucket[:100]!r} is not one that pictures may come from")
        if bucket == self._s3.bucket and key.startswith(self._s3.prefix):
            # What others stored with us is not named by its place: that would be a way around whose it is.
            raise ImageRefused("this place belongs to the service; a stored picture is named by its id")

    def _from_file(self, path: Path, max_bytes: int) -> bytes:
        try:
            # What is opened is what is checked: resolved first, then no link followed at the end.
            found = path.resolve(strict=True)
            if not any(found.is_relative_to(root) for root in self._roots):
                raise ImageRefused(f"the file {_name(path)} leads out of the allowed roots")
            # O_NONBLOCK: opening a pipe must not wait for its writer.
            with open(os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ImageRefused(f"{_name(path)} is not a regular file")
                data = file.read(max_bytes + 1)
        except FileNotFoundError:
            raise ImageRefused(f"there is no file {_name(path)}") from None
        except (PermissionError, IsADirectoryError, NotADirectoryError, RuntimeError, ValueError) as error:
            # RuntimeError is pathlib's word for links in a circle.
            raise ImageRefused(f"the file {_name(path)} cannot be read ({type(error).__name__})") from None
        except OSError:
            raise ImageUnreachable(f"the file {_name(path)} cannot be read now") from None
        if len(data) > max_bytes:
            raise ImageRefused(f"the file {_name(path)} has more than {max_bytes} bytes")
        return data

    def _from_s3(self, reference: str, max_bytes: int) -> bytes:
        bucket, key = _s3_parts(reference)
        assert self._s3 is not None  # noqa: S101 - _check_s3 saw to it
        try:
            return self._s3.read_foreign(bucket, key, max_bytes)
        except (NotFound, ObjectTooLarge) as error:
            raise ImageRefused(error.message) from None
        except StoreUnavailable as error:
            raise ImageUnreachable(error.message) from None


def _file_path(reference: str) -> Path:
    """The path in `file:///…`; raises ImageRefused if there is none, or it is another machine's."""
    try:
        parts = urlsplit(reference)
    except ValueError as error:
        raise ImageRefused("not an address that can be read") from error
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise ImageRefused("a file is named as file:///folder/name")
    if parts.query or parts.fragment:
        raise ImageRefused("in a file:// address ? and # are written as %3F and %23")
    return Path(path)


def _name(path: Path) -> str:
    """For messages: without what would break a line, and short."""
    return ascii(path.name[:100])


def _s3_parts(reference: str) -> tuple[str, str]:
    bucket, _, key = reference.partition("://")[2].partition("/")
    return bucket, key
