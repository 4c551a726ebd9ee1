"""Hostile references to files: out of the allowed roots by dots, links, pipes and half-encoded names."""

import os
from pathlib import Path

import pytest

from core.errors import ImageRefused
from core.outbound.guard import Guard
from storage.objects.local import LocalStore
from storage.sources import Sources


def never(_host: str, _port: int) -> list[str]:
    raise AssertionError("nothing was to be looked up")


@pytest.mark.parametrize(
    "reference",
    [
        "file:///etc/passwd",
        "file:///etc/shadow",
        "file:///proc/self/environ",
        "file:///dev/zero",
        "file://{root}/../outside.png",
        "file://{root}/%2e%2e/outside.png",
        "file://{root}/a/../../outside.png",
        "file://{root}x/a.png",
        "file://{root}/link.png",
        "file://{root}/folder-link/outside.png",
        "file://{root}/loop",
        "file://{root}/pipe",
        "file://{root}",
        "file://{root}/",
        "file://{root}/a.png%00.txt",
        "file://{root}/not-there.png",
        "file://{root}/a.png?x=1",
        "file://{root}/a.png#x",
        "file://elsewhere{root}/a.png",
        "file://127.0.0.1{root}/a.png",
        "file:a.png",
        "file://a.png",
        "s3://bucket/key",
        "s3://bucket",
        "s3://",
    ],
)
def test_files_outside_the_roots_are_refused(reference: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a.png").write_bytes(b"inside")
    (tmp_path / "outside.png").write_bytes(b"outside")
    (tmp_path / "rootx").mkdir()
    (tmp_path / "rootx/a.png").write_bytes(b"outside")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "folder-link").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    (root / "inner.png").symlink_to(root / "a.png")
    os.mkfifo(root / "pipe")
    sources = Sources(guard=Guard(resolve=never), store=LocalStore(tmp_path / "store"), file_roots=[root])
    with pytest.raises(ImageRefused) as raised:
        sources.fetch(reference.format(root=root), max_bytes=1000)
    assert not raised.value.retryable
    assert str(tmp_path) not in str(raised.value)
    assert sources.fetch(f"file://{root}/a.png", max_bytes=6) == b"inside"
    assert sources.fetch(f"file://{root}/inner.png", max_bytes=6) == b"inside"
    with pytest.raises(ImageRefused, match="more than 5 bytes"):
        sources.fetch(f"file://{root}/a.png", max_bytes=5)
