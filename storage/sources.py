"""Download of pictures: over HTTP through the guard, from allowed folders and from allowed S3 buckets.

A request names a picture by a *reference*: `https://…`, `http://…`, `file://…` or `s3://bucket/key`. Messages quote
only the host or the file name, never the query: a presigned address gives access to a bucket.
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
from core.outbound.download_budget import NOBODY, Requester
from core.outbound.guard import Guard
from storage.objects import ForeignReader, ObjectStore

_MAX_REFERENCE = 8192


class Sources:
    """Downloads pictures by their references. Safe to use from several threads.

    file_roots: the folders that `file://` references may read from, after symbolic links are resolved.
    s3_buckets: buckets that may be read with the store's credentials, beside the store's own outside its prefix.
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
        """Why `reference` is not allowed, checked without any I/O; None if it is."""
        try:
            self._check(reference)
        except (ImageRefused, AddressRefused) as error:
            return error.message
        return None

    def fetch(
        self, reference: str, *, max_bytes: int, requester: Requester = NOBODY, timeout_s: float | None = None
    ) -> bytes:
        """Download a picture for `requester`. `timeout_s` may shorten the time limit of an HTTP download.

        Raises ImageRefused if the reference is not allowed, or its file is missing or too large; ImageUnreachable,
        which may be retried, if the source does not answer.
        """
        try:
            scheme = self._check(reference)
            if scheme == "file":
                return self._from_file(_file_path(reference), max_bytes)
            if scheme == "s3":
                return self._from_s3(reference, max_bytes)
            return self._guard.get_bytes(reference, max_bytes, requester, timeout_s)
        except (AddressRefused, AnswerRefused) as error:
            raise ImageRefused(error.message, error.details) from None
        except Unreachable as error:
            raise ImageUnreachable(error.message, error.details, retry_after_s=error.retry_after_s) from None

    def _check(self, reference: str) -> str:
        """Check a reference; returns its scheme. Raises ImageRefused or AddressRefused."""
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
            raise ImageRefused("a picture reference starts with https://, http://, s3:// or file://")
        return scheme

    def _check_s3(self, reference: str) -> None:
        bucket, key = _s3_parts(reference)
        if not bucket or not key:
            raise ImageRefused("an S3 reference has the form s3://bucket/key")
        if self._s3 is None:
            raise ImageRefused("pictures from S3 need an object store on S3")
        if bucket not in self._buckets:
            raise ImageRefused(f"the bucket {bucket[:100]!r} is not allowed as a source of pictures")
        if bucket == self._s3.bucket and key.startswith(self._s3.prefix):
            # Naming stored pictures by their key would bypass the check of their owner.
            raise ImageRefused("this key belongs to the object store; name a stored picture by its id")

    def _from_file(self, path: Path, max_bytes: int) -> bytes:
        try:
            # Resolve links first, then refuse to follow one: the file that is checked is the file that is opened.
            found = path.resolve(strict=True)
            if not any(found.is_relative_to(root) for root in self._roots):
                raise ImageRefused(f"the file {_name(path)} links to a place outside the allowed roots")
            # O_NONBLOCK: opening a named pipe must not wait for a writer.
            with open(os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ImageRefused(f"{_name(path)} is not a regular file")
                data = file.read(max_bytes + 1)
        except FileNotFoundError:
            raise ImageRefused(f"there is no file {_name(path)}") from None
        except (PermissionError, IsADirectoryError, NotADirectoryError, RuntimeError, ValueError) as error:
            # pathlib raises RuntimeError for a loop of links.
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
    """The path in `file:///…`. Raises ImageRefused if it has none, or names another machine."""
    try:
        parts = urlsplit(reference)
    except ValueError as error:
        raise ImageRefused("the reference is not a valid address") from error
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise ImageRefused("a file reference has the form file:///folder/name")
    if parts.query or parts.fragment:
        raise ImageRefused("in a file:// address, write ? and # as %3F and %23")
    return Path(path)


def _name(path: Path) -> str:
    """The file name for messages: short, and without control characters."""
    return ascii(path.name[:100])


def _s3_parts(reference: str) -> tuple[str, str]:
    bucket, _, key = reference.partition("://")[2].partition("/")
    return bucket, key
