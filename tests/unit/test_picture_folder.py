"""What a folder has for a training: every file is a picture, a caption, a mask, or named in a note."""

import json
import unicodedata
from pathlib import Path

import pytest

from core.errors import SpecInvalid, TooFewImages
from tests.unit.drawings import drawing
from training.data.folders.picture_folder import PictureFolder, read_folder
from training.data.folders.prepare import load_folder
from training.spec import TrainSpec

SPEC = TrainSpec(base_model="sd15", trigger_word="sks", seed=0, resolution=64)  # type: ignore[call-arg]


def folder_of(place: Path, *names: str) -> Path:
    """A folder with these files; their content does not matter to `read_folder`."""
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"text of " + name.encode())
    return place


def captions(found: PictureFolder) -> dict[str, str | None]:
    return {picture.path.name: picture.caption for picture in found.pictures}


def test_pictures_are_known_by_their_suffix_in_any_case(tmp_path: Path) -> None:
    names = ("1.JPG", "2.jpeg", "3.png", "4.WebP", "5.avif", "6.jfif", "7.HEIC", "8.tif", "9.gif", "a.bmp", "b.jp2")
    found = read_folder(folder_of(tmp_path, *names), masked=False)
    assert [picture.path.name for picture in found.pictures] == sorted(names)
    assert found.notes == ()


@pytest.mark.parametrize(
    "caption", ["dog.txt", "dog.TXT", "DOG.txt", "dog.caption", "dog.jpg.txt", "dog.JPG.txt", "dog.jpg.caption"]
)
def test_a_caption_has_the_name_of_its_picture(tmp_path: Path, caption: str) -> None:
    found = read_folder(folder_of(tmp_path, "dog.jpg", "cat.jpg", caption), masked=False)
    assert captions(found) == {"dog.jpg": f"text of {caption}", "cat.jpg": None}
    assert found.notes == ()


def test_names_are_compared_without_regard_to_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Zoé") for form in ("NFC", "NFD"))
    folder_of(tmp_path, f"{composed}.jpg", f"masks/{decomposed}.png")
    (tmp_path / f"{decomposed}.txt").write_text("a cat")
    found = read_folder(tmp_path, masked=True)
    assert found.pictures[0].caption == "a cat"
    assert found.pictures[0].mask == tmp_path / "masks" / f"{decomposed}.png"


@pytest.mark.parametrize(
    ("raw", "caption"),
    [
        (b"\xef\xbb\xbfa dog\r\n", "a dog"),
        ("ä".encode() * 1000 + b" " * 2000, "ä" * 1000),
        (b" \n", None),
        ("a Käfer".encode("utf-16"), "a Käfer"),
        ("a Käfer".encode("cp1252"), "a Käfer"),
    ],
)
def test_a_caption_is_read_in_the_encoding_that_it_has(tmp_path: Path, raw: bytes, caption: str | None) -> None:
    (tmp_path / "dog.txt").write_bytes(raw)
    found = read_folder(folder_of(tmp_path, "dog.png"), masked=False)
    assert captions(found) == {"dog.png": caption}
    is_guessed = raw == "a Käfer".encode("cp1252")
    assert found.notes == (("dog.txt is not UTF-8; read it as Windows-1252",) if is_guessed else ())


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"\x80\x81\x90", "the caption is neither UTF-8, UTF-16 nor Windows-1252 text"),
        (b"\xff\x00\x01\x02", "the caption is neither UTF-8, UTF-16 nor Windows-1252 text"),
        ("ä".encode() * 1001, "the caption is longer than 1000 characters"),
        (b"a" * 100_000, "the caption is longer than 1000 characters"),
    ],
)
def test_a_caption_that_is_none_is_refused_by_name(tmp_path: Path, raw: bytes, fault: str) -> None:
    (tmp_path / "dog.txt").write_bytes(raw)
    with pytest.raises(SpecInvalid) as raised:
        read_folder(folder_of(tmp_path, "dog.png"), masked=False)
    assert raised.value.faults == {"dog.txt": fault}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", '{"file_name": "dog.jpg", "text": "a dog"}\n\n{"file_name": "x.jpg", "text": "y"}\n'),
        ("captions.csv", 'file,caption\ndog.jpg,a dog\nx.jpg,"y, z"\n'),
        ("metadata.csv", "file_name,text\nDOG.JPG,a dog\nx.jpg,y\n"),
    ],
)
def test_captions_are_read_from_a_table_of_another_trainer(tmp_path: Path, name: str, text: str) -> None:
    folder_of(tmp_path, "dog.jpg", "cat.jpg", "cat.txt")
    (tmp_path / name).write_text(text)
    found = read_folder(tmp_path, masked=False)
    assert captions(found) == {"dog.jpg": "a dog", "cat.jpg": "text of cat.txt"}
    assert found.notes == (f"{name} has captions of files that are not there: x.jpg",)


@pytest.mark.parametrize("text", ["no json", '["dog.jpg", "a dog"]', json.dumps({"text": "a dog"})])
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(SpecInvalid, match="each line must have file_name and text"):
        read_folder(folder_of(tmp_path, "dog.jpg"), masked=False)


def test_every_other_file_is_named_once(tmp_path: Path) -> None:
    folder_of(
        tmp_path, "dog.jpg", ".DS_Store", "._dog.jpg", "._dog.txt", "Thumbs.db", "other.txt", "old.caption", "a.jxl",
        "b.psd", "c.CR2", "clip.mov", "notes.md", "more/one.jpg", "more/two.jpg", "masks/dog.png", "empty/.keep",
    )  # fmt: skip
    found = read_folder(tmp_path, masked=False)
    assert [picture.path.name for picture in found.pictures] == ["dog.jpg"]
    accepted = "save as JPEG or PNG (accepted: JPEG, PNG, WebP, AVIF, HEIC, TIFF, GIF, BMP, JPEG 2000)"
    assert found.notes == (
        "no picture has the name of these captions: old.caption, other.txt",
        "masks are not used: set objective.masked to use them: masks/dog.png",
        "skipped 4 hidden files, such as a computer writes beside pictures: .DS_Store, ._dog.jpg, ._dog.txt, Thumbs.db",
        f"left out a.jxl: JPEG XL is not read; {accepted}",
        f"left out b.psd: Photoshop is not read; {accepted}",
        f"left out c.CR2: camera raw is not read; {accepted}",
        "not pictures, and not read: clip.mov, notes.md",
        "the subfolder empty is not read (1 file)",
        "the subfolder more is not read (2 files)",
    )


def test_many_files_of_a_kind_are_one_line(tmp_path: Path) -> None:
    folder_of(tmp_path, "dog.jpg", *(f"{number}.txt" for number in range(9)))
    found = read_folder(tmp_path, masked=False)
    assert found.notes == ("no picture has the name of these captions: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 4 more",)


def test_of_two_masks_with_one_name_always_the_same_counts(tmp_path: Path) -> None:
    folder_of(tmp_path, "dog.webp", "cat.webp", "cow.webp")
    folder_of(tmp_path / "masks", "dog.avif", "dog.png", "dog.JPG", "cat.PNG")
    found = read_folder(tmp_path, masked=True)
    assert {picture.path.stem: picture.mask and picture.mask.name for picture in found.pictures} == {
        "dog": "dog.JPG", "cat": "cat.PNG", "cow": None,
    }  # fmt: skip


def test_a_folder_laid_out_for_kohyas_trainer_is_read(tmp_path: Path) -> None:
    folder_of(tmp_path, "10_sks dog/1.jpg", "10_sks dog/1.txt", "10_sks dog/2.jpg", "reg/a.jpg", "reg/b.jpg")
    found = read_folder(tmp_path, masked=False)
    assert captions(found) == {"1.jpg": "text of 10_sks dog/1.txt", "2.jpg": None}
    assert (found.trigger_word, found.class_word) == ("sks", "dog")
    assert found.notes == (
        "read 10_sks dog; the repeats in the name (10) are not used: set the epochs instead",
        "the subfolder reg is not read (2 files)",
    )
    beside = read_folder(folder_of(tmp_path, "3.jpg"), masked=False)
    assert captions(beside) == {"3.jpg": None}
    assert "the subfolder 10_sks dog is not read (3 files)" in beside.notes


def test_too_few_pictures_say_what_else_is_there(tmp_path: Path) -> None:
    folder_of(tmp_path, *(f"{number}.jxl" for number in range(8)))
    drawing(1).save(tmp_path / "1.png")
    (tmp_path / "2.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    with pytest.raises(TooFewImages) as raised:
        load_folder(tmp_path, SPEC, tmp_path)
    lines = raised.value.message.splitlines()
    assert lines[0] == f"{tmp_path} has 1 good pictures of 2; at least 5 are needed"
    assert lines[1].startswith("  picture 2 (2.heic): the picture is damaged and cannot be decoded")
    assert lines[2].startswith("  left out 0.jxl, 1.jxl, 2.jxl, 3.jxl, 4.jxl and 3 more: JPEG XL is not read")
