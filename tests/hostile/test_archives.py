"""Archives from outside: nothing leaves the folder, and memory, disk and time are bounded whatever an archive says."""

import bz2
import gzip
import io
import lzma
import os
import random
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import ArchiveInvalid
from training.data.folders.archives import opened, unpack
from training.data.folders.picture_folder import read_folder
from training.data.folders.unpack_target import UnpackLimits

SMALL = UnpackLimits(file_bytes=1000, bytes=5000, members=20)
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
}


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info, data in members:
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(name: str, data: bytes = b"", **values: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info, data


def of_files(files: dict[str, bytes], suffix: str) -> bytes:
    if suffix == ".zip":
        return zipped(files)
    return PACKERS[suffix](tarred(*(member(name, data) for name, data in files.items())))


def refused(data: bytes, into: Path, limits: UnpackLimits = SMALL) -> str:
    into.mkdir()
    with pytest.raises(ArchiveInvalid) as raised:
        unpack(io.BytesIO(data), into, limits)
    return raised.value.message


@pytest.mark.parametrize("suffix", [".zip", *PACKERS])
@pytest.mark.parametrize("top", ["", "my dog/", "deep/down/here/"])
def test_an_archive_is_read_as_the_folder_that_was_packed(tmp_path: Path, suffix: str, top: str) -> None:
    files = {
        "dog1.jpg": b"a", "dog1.txt": b"sks dog on grass", "dog2.JPG": b"bb", "metadata.jsonl": b"",
        "notes.pdf": b"pdf", "masks/dog1.png": b"m", ".DS_Store": b"x",
    }  # fmt: skip
    data = of_files({top + name: held for name, held in files.items()} | {"__MACOSX/._dog1.jpg": b"x"}, suffix)
    file = tmp_path / f"dogs{suffix}"
    file.write_bytes(data)
    with opened(file, SMALL) as folder:
        found = read_folder(folder, masked=True)
        assert [(one.path.name, one.caption, one.mask and one.mask.name) for one in found.pictures] == [
            ("dog1.jpg", "sks dog on grass", "dog1.png"),
            ("dog2.JPG", None, None),
        ]
        assert [one.path.read_bytes() for one in found.pictures] == [b"a", b"bb"]
        assert "not pictures, and not read: notes.pdf" in found.notes
        assert any(note.startswith("skipped") and ".DS_Store" in note for note in found.notes)
    assert not folder.exists()


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_kohya_folders_are_read_in_an_archive(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / "kohya.bin"  # known by its bytes, whatever its name
    file.write_bytes(of_files({"train/10_sks dog/1.jpg": b"a", "train/reg/2.jpg": b"b"}, suffix))
    with opened(file) as folder:
        found = read_folder(folder, masked=False)
    assert ([one.path.name for one in found.pictures], found.trigger_word, found.class_word) == (
        ["1.jpg"],
        "sks",
        "dog",
    )
    assert "the subfolder reg is not read (1 file)" in found.notes


OUTSIDE = ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "..\\x.jpg", "C:\\x.jpg", "C:x.jpg", "\\\\host\\share\\x.jpg"]


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_no_member_is_written_outside_the_folder(tmp_path: Path, suffix: str, name: str) -> None:
    message = refused(of_files({"a.jpg": b"a", name: b"x"}, suffix), tmp_path / "into")
    assert message.endswith("would be unpacked outside its folder")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.jpg", "into"]


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize(
    "name", ["a\x1b[2J.jpg", "a\nb.jpg", "x" * 256 + ".jpg", "a/" * 30 + "b.jpg", "a\u202egpj.jpg"]
)
def test_names_that_no_file_should_have_are_refused(tmp_path: Path, suffix: str, name: str) -> None:
    message = refused(of_files({name: b"x"}, suffix), tmp_path / "into")
    assert message.endswith("is not a name that a file can have here")
    assert message.isprintable()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    data = tarred(member("a.jpg", type=kind, linkname="/etc/passwd"))
    if kind == tarfile.CONTTYPE:  # an old kind of plain file
        unpack(io.BytesIO(data), tmp_path, SMALL)
        return
    assert "is a link or a device" in refused(data, tmp_path / "into")


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("a.jpg")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert refused(out.getvalue(), tmp_path / "into") == "a.jpg is a link or a device, not a file"


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.jpg": b"a"}))
    for signature, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data[data.index(signature) + offset] |= 1
    assert refused(bytes(data), tmp_path / "into") == "a.jpg is encrypted; send an archive without a password"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression_is_refused(tmp_path: Path, method: int) -> None:
    assert "only deflate is read" in refused(zipped({"a.jpg": b"a" * 100}, method), tmp_path / "into")


@pytest.mark.parametrize("suffix", [".zip", *PACKERS])
@pytest.mark.parametrize("name", ["more.zip", "more.tar.gz", "deep/MORE.RAR"])
def test_an_archive_in_an_archive_is_refused(tmp_path: Path, suffix: str, name: str) -> None:
    message = refused(of_files({"a.jpg": b"a", name: b"x"}, suffix), tmp_path / "into")
    assert message == f"{Path(name).name} is an archive in the archive; unpack it first"


@pytest.mark.parametrize("suffix", [".zip", *PACKERS])
def test_too_many_members_are_refused(tmp_path: Path, suffix: str) -> None:
    assert refused(of_files({f"{n}.pdf": b"" for n in range(21)}, suffix), tmp_path / "into").endswith("than 20 files")


@pytest.mark.parametrize("suffix", [".zip", *PACKERS])
@pytest.mark.parametrize("name", ["a.jpg", "a.txt", "movie.mov"])
def test_a_bomb_is_refused_or_not_unpacked(tmp_path: Path, suffix: str, name: str) -> None:
    """Many more zeros than the archive has bytes, in files of every kind, also those that are not read."""
    data = of_files({f"{n}{name}": bytes(60_000) for n in range(10)}, suffix)
    (tmp_path / "into").mkdir()
    limits = UnpackLimits(file_bytes=10_000, bytes=50_000, members=20)
    if (suffix, name) == (".zip", "movie.mov"):
        unpack(io.BytesIO(data), tmp_path / "into", limits)  # these members are not even opened
    elif suffix == ".zip" or name != "movie.mov":
        with pytest.raises(ArchiveInvalid, match="more than 50000 bytes"):
            unpack(io.BytesIO(data), tmp_path / "into", limits)
    else:
        unpack(io.BytesIO(data), tmp_path / "into", limits)  # unpacked and thrown away; the stream has its own limit
    assert sum(path.stat().st_size for path in (tmp_path / "into").iterdir()) <= 50_000


@pytest.mark.parametrize("suffix", list(PACKERS))
def test_what_is_passed_over_is_counted(tmp_path: Path, suffix: str) -> None:
    """A tar file must be unpacked to find the next member. 20 MB of zeros are 20 kB or less."""
    data = of_files({"movie.mov": bytes(20_000_000)}, suffix)
    assert "more than 5000 bytes" in refused(data, tmp_path / "into")


def test_a_larger_picture_is_cut_so_that_its_check_says_why(tmp_path: Path) -> None:
    folder = unpack(io.BytesIO(zipped({"a.jpg": bytes(4000)})), tmp_path, SMALL)
    assert (folder / "a.jpg").stat().st_size == 1001


def test_a_zip_with_a_million_members_is_refused_before_they_are_listed(tmp_path: Path) -> None:
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 1_000_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(directory), 4, 0)
    data = b"PK\3\4" + directory + end
    tracemalloc.start()
    message = refused(data, tmp_path / "into", UnpackLimits())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message == "the archive has more than 10000 files"
    assert peak < 32 * 2**20


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_huge_tar_header_is_not_read_into_memory(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, 50_000_000
    data = gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(50_000_000))
    tracemalloc.start()
    message = refused(data, tmp_path / "into", UnpackLimits())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message == "the archive has a member whose header is too large"
    assert peak < 16 * 2**20


def test_an_xz_file_that_asks_for_much_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 * 2**20, "preset": 0}]
    stream = lzma.compress(tarred(member("a.jpg", b"a")), format=lzma.FORMAT_XZ, filters=filters)
    assert refused(stream, tmp_path / "into") == "the archive is damaged or incomplete; make or download it again"


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"00000000000 00000000000 "
    header[483:495] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert "is a link or a device" in refused(bytes(header) + bytes(1024), tmp_path / "into")


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    data = tarred(member("a.jpg", b"a"), member("./a.jpg", b"b"))
    assert refused(data, tmp_path / "into") == "the archive has two files named a.jpg"
    data = tarred(member("a", b"a"), member("a/b.jpg", b"b"))
    assert refused(data, tmp_path / "into2") == "a is both a file and a folder"


@pytest.mark.parametrize("suffix", [".zip", *PACKERS])
def test_a_damaged_archive_is_refused_whatever_is_damaged(tmp_path: Path, suffix: str) -> None:
    sound = of_files({f"{n}.jpg": os.urandom(300) for n in range(5)}, suffix)
    chance = random.Random(7)
    for attempt in range(60):
        data = bytearray(sound[: chance.randrange(6, len(sound))] if attempt % 2 else sound)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(6, len(data))] = chance.randrange(256)
        into = tmp_path / str(attempt)
        into.mkdir()
        try:
            unpack(io.BytesIO(bytes(data)), into, SMALL)
        except ArchiveInvalid:
            continue


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"Rar!\x1a\x07\0", "a RAR archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
        (b"\x28\xb5\x2f\xfd\0", "a Zstandard archive"),
        (b"hello", "no archive"),
        (b"", "no archive"),
    ],
)
def test_other_kinds_are_named(tmp_path: Path, data: bytes, kind: str) -> None:
    assert refused(data, tmp_path / "into") == f"the file is {kind}; send a ZIP or tar archive, or a folder"


def test_a_gzip_file_of_something_else_is_refused(tmp_path: Path) -> None:
    assert "damaged or incomplete" in refused(gzip.compress(b"hello"), tmp_path / "into")
