"""The object store for pictures, checkpoints and LoRA files.

`LocalStore` stores objects in a folder, `S3Store` in a bucket; the same tests run over both. Keys are made from ids and
hashes. Stores are safe to use from several threads.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from core.errors import KeyRefused

# No segment starts with a dot: that rules out `..`, and reserves such names for the local store.
_KEY = re.compile(r"[a-z0-9_-][a-z0-9._-]*(/[a-z0-9_-][a-z0-9._-]*)*")
_PREFIX = re.compile(r"([a-z0-9_-][a-z0-9._-]*/)*([a-z0-9_-][a-z0-9._-]*)?")
_MAX_KEY = 512


@dataclass(frozen=True)
class ObjectInfo:
    """What a store knows about an object without reading it."""

    size_bytes: int
    sha256: str | None  # hex, of the whole object; None if the store has none


class ObjectStore(Protocol):
    """Objects by key. Keys consist of `[a-z0-9._/-]`; no segment is empty or starts with a dot.

    Every method raises KeyRefused for an invalid key, and StoreUnavailable, which may be retried, if the store does not
    answer, denies access or is full. A written object is durable when the call returns, and not visible before.
    """

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write or replace an object. With `create_only`, raises ObjectExists if it exists."""

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> None:
        """Like `put`, from a file of any size."""

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound."""

    def get_file(self, key: str, path: Path) -> None:
        """Copy an object to `path`, atomically. Raises NotFound."""

    def exists(self, key: str) -> bool: ...

    def head(self, key: str) -> ObjectInfo:
        """Raises NotFound."""

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that start with `prefix`, sorted; may miss keys that are added or removed meanwhile."""

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""

    def delete_prefix(self, prefix: str) -> None:
        """Delete all keys under `prefix`, which must end in a slash: `jobs/1` would match `jobs/10` too."""

    def uri(self, key: str) -> str:
        """The address of the object for programs with access to the store: `s3://…` or `file://…`. No secret."""

    def url(self, key: str, expires_s: int, name: str | None = None) -> str:
        """An address where anyone can read the object for `expires_s` seconds: a secret, never log it.

        `name`: what a browser saves the object as, where the address can say that.
        """


@runtime_checkable
class ForeignReader(Protocol):
    """A store that can also read other buckets of its server."""

    @property
    def bucket(self) -> str: ...

    @property
    def prefix(self) -> str:
        """The prefix of the store's keys in its bucket: empty, or ending in a slash."""

    def read_foreign(self, bucket: str, key: str, max_bytes: int) -> bytes:
        """Read an object from any readable bucket. Raises NotFound, ObjectTooLarge, StoreUnavailable."""


def checked_key(key: str) -> str:
    """Return `key`; raises KeyRefused if it is invalid."""
    if len(key) > _MAX_KEY or not _KEY.fullmatch(key):
        raise KeyRefused(f"not a key of the object store: {key[:100]!r}")
    return key


def checked_prefix(prefix: str) -> str:
    """Return `prefix`; raises KeyRefused if no key can start with it."""
    if len(prefix) > _MAX_KEY or not _PREFIX.fullmatch(prefix):
        raise KeyRefused(f"not a prefix of the object store: {prefix[:100]!r}")
    return prefix


def checked_folder(prefix: str) -> str:
    """Return `prefix`; raises KeyRefused unless it is valid and ends in a slash."""
    if not prefix.endswith("/"):
        raise KeyRefused(f"only a prefix that ends in a slash can be deleted: {prefix[:100]!r}")
    return checked_prefix(prefix)
