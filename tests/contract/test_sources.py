"""Where pictures come from: each kind of reference, and what a failure of each becomes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import ImageRefused, ImageUnreachable
from core.outbound.guard import Guard
from storage.objects.local import LocalStore
from storage.sources import Sources
from tests.servers.pictures import PictureServer, picture_server
from tests.servers.s3 import S3Server, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def site() -> Iterator[PictureServer]:
    with picture_server() as server:
        yield server


def local_sources(folder: Path, *roots: Path, allow_hosts: tuple[str, ...] = ()) -> Sources:
    guard = Guard(allow_hosts=allow_hosts, timeout_s=10)
    return Sources(guard=guard, store=LocalStore(folder / "store"), file_roots=roots)


def test_files_come_from_their_roots(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "ein bild é.png").write_bytes(b"x")
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    for given in (root, linked):
        sources = local_sources(tmp_path, given)
        for reference in ((given / "ein bild é.png").as_uri(), f"FILE://localhost{given}/ein bild é.png"):
            assert sources.refusal_reason(reference) is None
            assert sources.fetch(reference, max_bytes=1) == b"x"


def test_no_roots_no_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    text = local_sources(tmp_path).refusal_reason(f"file://{tmp_path}/a.png")
    assert text is not None
    assert "not under an allowed root" in text


def test_a_picture_comes_over_http(tmp_path: Path, site: PictureServer) -> None:
    sources = local_sources(tmp_path, allow_hosts=(site.address,))
    url = site.put("/a.png", b"pixels")
    assert sources.refusal_reason(url) is None
    assert sources.fetch(url + "?X-Amz-Signature=planted", max_bytes=6) == b"pixels"


@pytest.mark.parametrize(("status", "retryable"), [(404, False), (403, False), (500, True), (503, True), (429, True)])
def test_what_http_answers_becomes_one_of_ours(
    tmp_path: Path, site: PictureServer, status: int, retryable: bool
) -> None:
    sources = local_sources(tmp_path, allow_hosts=(site.address,))
    url = site.put("/a.png", b"")
    site.status["/a.png"] = status
    with pytest.raises(ImageUnreachable) as raised:
        sources.fetch(url + "?X-Amz-Signature=planted", max_bytes=6)
    assert raised.value.retryable is retryable
    assert isinstance(raised.value, ImageRefused) is not retryable
    assert str(status) in raised.value.message
    assert "planted" not in raised.value.message
    assert "foreign body" not in raised.value.message


def test_pictures_come_from_the_stores_bucket_and_listed_ones(s3: S3Server) -> None:
    own, listed, other = s3.bucket(), s3.bucket(), s3.bucket()
    for bucket in (own, listed, other):
        s3.client.put_object(Bucket=bucket, Key="Folder/My Cat.JPG", Body=b"cat")
    sources = Sources(guard=Guard(), store=s3.store(own, prefix="imprint"), s3_buckets=[listed])
    for bucket in (own, listed):
        assert sources.refusal_reason(f"s3://{bucket}/Folder/My Cat.JPG") is None
        assert sources.fetch(f"s3://{bucket}/Folder/My Cat.JPG", max_bytes=3) == b"cat"
    assert sources.refusal_reason(f"s3://{other}/Folder/My Cat.JPG")
    for reference, words in (
        (f"s3://{other}/Folder/My Cat.JPG", "not allowed as a source of pictures"),
        (f"s3://{own}/nothing", "no object"),
        (f"s3://{own}/", "s3://bucket/key"),
        (f"s3://{own}/imprint/originals/ab/abcd", "belongs to the object store"),
    ):
        with pytest.raises(ImageRefused, match=words):
            sources.fetch(reference, max_bytes=3)
    with pytest.raises(ImageRefused, match="more than 2 bytes"):
        sources.fetch(f"s3://{own}/Folder/My Cat.JPG", max_bytes=2)


def test_s3_that_is_away_may_be_retried(s3: S3Server) -> None:
    away = s3.store("bucket", prefix="imprint", endpoint_url="http://127.0.0.1:9")
    sources = Sources(guard=Guard(), store=away)
    with pytest.raises(ImageUnreachable) as raised:
        sources.fetch("s3://bucket/key", max_bytes=3)
    assert raised.value.retryable
