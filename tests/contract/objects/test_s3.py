"""What S3 promises beyond the contract: digests, limits, conditions, and errors without secrets."""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import NotFound, ObjectTooLarge, StoreUnavailable
from storage.objects import ObjectInfo
from storage.objects.s3 import S3Store
from tests.contract.objects.conftest import MULTIPART_BYTES
from tests.servers.s3 import S3Server


def test_the_digest_travels_with_the_object(server: S3Server) -> None:
    store = server.store(server.bucket())
    store.put("a/b", b"12345")
    assert store.head("a/b") == ObjectInfo(5, hashlib.sha256(b"12345").hexdigest())


def test_damage_on_the_way_is_seen(server: S3Server, tmp_path: Path) -> None:
    bucket = server.bucket()
    store = server.store(bucket)
    server.client.put_object(Bucket=bucket, Key="a", Body=b"other", Metadata={"sha256": "0" * 64})
    with pytest.raises(StoreUnavailable, match="damaged"):
        store.get("a")
    with pytest.raises(StoreUnavailable, match="damaged"):
        store.get_file("a", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_foreign_objects_are_read_with_a_limit(server: S3Server) -> None:
    foreign = server.bucket()
    server.client.put_object(Bucket=foreign, Key="Some Name (1).JPG", Body=b"x" * 1000)
    store = server.store(server.bucket())
    assert store.read_foreign(foreign, "Some Name (1).JPG", 1000) == b"x" * 1000
    with pytest.raises(ObjectTooLarge):
        store.read_foreign(foreign, "Some Name (1).JPG", 999)
    for bucket, key in ((foreign, "no such"), ("no-such-bucket", "x"), (foreign, "x" * 2000)):
        with pytest.raises(NotFound):
            store.read_foreign(bucket, key, 10)


def test_an_unfinished_upload_is_not_there(server: S3Server, tmp_path: Path) -> None:
    """A file that cannot be read to its end: no object, no parts left."""
    bucket = server.bucket()
    store = server.store(bucket, multipart_bytes=MULTIPART_BYTES)
    source = tmp_path / "large"
    source.write_bytes(os.urandom(MULTIPART_BYTES + 10))

    class Breaks:
        """A disk that fails in mid-file."""

        def __init__(self) -> None:
            self.reads = 0

        def read(self, size: int) -> bytes:
            self.reads += 1
            if self.reads > 1:
                raise OSError(5, "Input/output error")
            return os.urandom(size)

    with pytest.raises(StoreUnavailable):
        store._put_parts("a/b", Breaks(), 2 * MULTIPART_BYTES, b"\0" * 32, create_only=False)  # type: ignore[arg-type]
    assert not store.exists("a/b")
    assert server.client.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


def test_a_store_that_is_away_says_no_secret() -> None:
    store = S3Store(
        bucket="nobody-home",
        endpoint_url="http://127.0.0.1:9",
        access_key_id="AKIAPLANTED",
        secret_access_key="planted-secret",
    )
    with pytest.raises(StoreUnavailable) as raised:
        store.get("a/b")
    assert raised.value.retryable
    assert "planted" not in str(raised.value).lower()
    assert raised.value.__cause__ is None


# ---- what moto does not refuse ----


def test_wrong_secrets_are_refused(open_server: Callable[[str], S3Server]) -> None:
    server = open_server("swift")
    bucket = server.bucket()
    store = server.store(bucket, secret_access_key="wrong")
    with pytest.raises(StoreUnavailable, match="403"):
        store.put("a/b", b"x")


def test_wrong_checksums_are_refused(open_server: Callable[[str], S3Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server = open_server("swift")
    store = server.store(server.bucket())
    with monkeypatch.context() as patch:
        patch.setattr("storage.objects.s3._base64", lambda _: "A" * 43 + "=")
        with pytest.raises(StoreUnavailable):
            store.put("a/b", b"x")
    assert not store.exists("a/b")


def test_urls_expire_and_hold_for_one_object(open_server: Callable[[str], S3Server]) -> None:
    server = open_server("swift")
    store = server.store(server.bucket())
    store.put("a/b", b"x")
    store.put("a/c", b"y")
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(store.url("a/b", 60).replace("a/b", "a/c"), timeout=10)  # noqa: S310
