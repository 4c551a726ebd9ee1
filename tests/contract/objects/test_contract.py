"""What every object store does."""

import hashlib
import os
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.errors import KeyRefused, NotFound, ObjectExists
from storage.objects import ObjectStore
from storage.objects.local import LocalStore
from tests.contract.objects.conftest import MULTIPART_BYTES


def test_what_was_put_is_got(store: ObjectStore) -> None:
    store.put("a/b-1/c_2.png", b"one")
    assert store.get("a/b-1/c_2.png") == b"one"
    store.put("a/b-1/c_2.png", b"")
    assert store.get("a/b-1/c_2.png") == b""


def test_files_go_in_and_out(store: ObjectStore, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(os.urandom(3 << 20))
    store.put_file("f/1.bin", source)
    target.write_bytes(b"older")
    store.get_file("f/1.bin", target)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["in", "out"]


def test_a_large_file_goes_in_parts(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(os.urandom(2 * MULTIPART_BYTES + 12345))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    store.put_file("l/large.bin", source, create_only=True)
    info = store.head("l/large.bin")
    assert info.size_bytes == source.stat().st_size
    assert info.sha256 in (None, digest)
    assert hashlib.sha256(store.get("l/large.bin")).hexdigest() == digest
    with pytest.raises(ObjectExists):
        store.put_file("l/large.bin", source, create_only=True)


def test_absence_is_said(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        store.get("not/there")
    with pytest.raises(NotFound):
        store.head("not/there")
    with pytest.raises(NotFound):
        store.get_file("not/there", tmp_path / "out")
    assert not store.exists("not/there")
    store.delete("not/there")
    store.delete_prefix("not/")
    assert list(tmp_path.glob("*out*")) == []


def test_a_folder_is_no_object(store: ObjectStore) -> None:
    store.put("a/b", b"x")
    assert not store.exists("a")
    with pytest.raises(NotFound):
        store.get("a")
    store.delete("a")
    assert store.exists("a/b")


def test_create_only_never_overwrites(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "two").write_bytes(b"two")
    store.put("k/1", b"one", create_only=True)
    with pytest.raises(ObjectExists):
        store.put("k/1", b"two", create_only=True)
    with pytest.raises(ObjectExists):
        store.put_file("k/1", tmp_path / "two", create_only=True)
    assert store.get("k/1") == b"one"


def test_of_many_creators_one_wins(store: ObjectStore) -> None:
    def create(number: int) -> bytes | None:
        data = b"%d" % number * 1000
        try:
            store.put("race/1", data, create_only=True)
        except ObjectExists:
            return None
        return data

    with ThreadPoolExecutor(8) as pool:
        winners = [data for data in pool.map(create, range(8)) if data]
    # Swift checks, then writes: two creators within a millisecond may both be told that they won.
    assert winners
    assert store.get("race/1") in winners
    if isinstance(store, LocalStore):
        assert len(winners) == 1


def test_many_threads_use_one_store(store: ObjectStore) -> None:
    def work(number: int) -> bytes:
        store.put(f"t/{number}/x", b"%d" % number)
        data = store.get(f"t/{number}/x")
        store.delete(f"t/{number}/x")
        return data

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(40))) == [b"%d" % number for number in range(40)]
    assert list(store.list("t/")) == []


def test_the_list_is_in_order(store: ObjectStore) -> None:
    for key in ("b/2", "b/10", "b/1/x", "bb/1", "a"):
        store.put(key, b"")
    assert list(store.list("b/")) == ["b/1/x", "b/10", "b/2"]
    assert list(store.list("b/1")) == ["b/1/x", "b/10"]
    assert list(store.list("")) == ["a", "b/1/x", "b/10", "b/2", "bb/1"]
    assert list(store.list("c/")) == []


def test_deleting_a_folder_leaves_its_neighbours(store: ObjectStore) -> None:
    for key in ("jobs/1/a", "jobs/1/b/c", "jobs/10/a"):
        store.put(key, b"x")
    with pytest.raises(KeyRefused):
        store.delete_prefix("jobs/1")
    store.delete_prefix("jobs/1/")
    assert list(store.list("jobs/")) == ["jobs/10/a"]


REFUSED = ["", "/", "/a", "a/", "a//b", "..", "../a", "a/../b", "a/.", ".tmp/x", "a/.b", "A", "a b", "a\\b", "ä"]
REFUSED += ["a\0", "a\n", "a:b", "a%2e", "a" * 513]


def test_keys_of_others_are_refused(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    calls: list[Callable[[str], object]] = [
        lambda key: store.put(key, b"x"),
        lambda key: store.put_file(key, tmp_path / "file"),
        store.get,
        lambda key: store.get_file(key, tmp_path / "out"),
        store.exists,
        store.head,
        store.delete,
        lambda key: store.url(key, 60),
    ]
    for key in REFUSED:
        for call in calls:
            with pytest.raises(KeyRefused):
                call(key)
        if key != "a/":
            with pytest.raises(KeyRefused):
                store.delete_prefix(key)


def test_the_uri_is_for_programs_with_access_to_the_store(store: ObjectStore) -> None:
    uri = store.uri("u/1.png")
    assert uri.startswith(("s3://test-", "file:///"))
    assert uri.endswith(("/some/where/u/1.png", "/store/u/1.png"))


def test_the_url_reads(store: ObjectStore) -> None:
    store.put("u/1.png", b"read me")
    with urllib.request.urlopen(store.url("u/1.png", 60), timeout=10) as answer:  # noqa: S310
        assert answer.read() == b"read me"
