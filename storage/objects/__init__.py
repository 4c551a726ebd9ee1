"""The object store: where pictures, checkpoints and LoRA files are kept, each whole or not at all.

`LocalStore` keeps them in a folder, `S3Store` in a bucket; one contract suite runs over both. Keys are made
by us, from ids and hashes. A store may be used from several threads at once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from core.errors import KeyRefused

# No segment starts with a dot: that rules out `..`, and leaves such names to the local store's own use.
_KEY = re.compile(r"[a-z0-9_-][a-z0-9._-]*(/[a-z0-9_-][a-z0-9._-]*)*")
_PREFIX = re.compile(r"([a-z0-9_-][a-z0-9._-]*/)*([a-z0-9_-][a-z0-9._-]*)?")
_MAX_KEY = 512


@dataclass(frozen=True)
class ObjectInfo:
    """What a store knows of an object without reading it."""

    size_bytes: int
    sha256: str | None  # hex, of the whole; None where the store keeps none


class ObjectStore(Protocol):
    """Objects under keys of `[a-z0-9._/-]`, without empty segments or ones that start with a dot.

    Every method raises KeyRefused for another key, and StoreUnavailable, which may be retried, when the store
    does not answer, refuses us or is full. What is written is durable when the call returns, and invisible
    before.
    """

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write one object, over an older one. Raises ObjectExists if `create_only` and there is one."""

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> None:
        """As `put`, from a file of any size."""

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound."""

    def get_file(self, key: str, path: Path) -> None:
        """Copy an object to `path`, whole or not at all. Raises NotFound."""

    def exists(self, key: str) -> bool: ...

    def head(self, key: str) -> ObjectInfo:
        """Raises NotFound."""

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that start with `prefix`, in order; those that come or go meanwhile may be missing."""

    def delete(self, key: str) -> None:
        """Absent is fine."""

    def delete_prefix(self, prefix: str) -> None:
        """Delete all under `prefix`, which must end in a slash: `jobs/1` would take `jobs/10` along."""

    def url(self, key: str, expires_s: int) -> str:
        """Where anyone can read the object for `expires_s` seconds: a secret, never to be logged."""


@runtime_checkable
class ForeignReader(Protocol):
    """A store that can also read from other buckets of the same server."""

    @property
    def bucket(self) -> str: ...

    @property
    def prefix(self) -> str:
        """What all keys of the store begin with in its bucket: empty, or ending in a slash."""

    def read_foreign(self, bucket: str, key: str, max_bytes: int) -> bytes:
        """An object that is not ours, whatever its key. Raises NotFound, ObjectTooLarge, StoreUnavailable."""


def checked_key(key: str) -> str:
    """`key`; raises KeyRefused."""
    if len(key) > _MAX_KEY or not _KEY.fullmatch(key):
        raise KeyRefused(f"not a key of the object store: {key[:100]!r}")
    return key


def checked_prefix(prefix: str) -> str:
    """`prefix`, the beginning of keys; raises KeyRefused."""
    if len(prefix) > _MAX_KEY or not _PREFIX.fullmatch(prefix):
        raise KeyRefused(f"not a prefix of the object store: {prefix[:100]!r}")
    return prefix


def checked_folder(prefix: str) -> str:
    """`prefix`, ending in a slash; raises KeyRefused."""
    if not prefix.endswith("/"):
        raise KeyRefused(f"only a prefix that ends in a slash can be deleted: {prefix[:100]!r}")
    return checked_prefix(prefix)
