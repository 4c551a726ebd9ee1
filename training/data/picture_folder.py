"""What a folder has for a training: pictures, their captions and masks, and a note on everything else in it.

Captions are read as other trainers write them: `dog1.txt`, `dog1.caption`, `dog1.jpg.txt`, `metadata.jsonl` (diffusers)
and `captions.csv`. Names are compared without regard to case and Unicode form.
"""

import codecs
import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import SpecInvalid
from training.data.file_kinds import ACCEPTED, OTHER_PICTURES, SUFFIXES
from training.spec import MAX_CAPTION_CHARACTERS, MAX_PICTURES

_MAX_CAPTION_BYTES = 8 * MAX_CAPTION_CHARACTERS  # a character has at most four bytes; the rest allows for spaces
_MAX_TABLE_BYTES = 20 * MAX_PICTURES * _MAX_CAPTION_BYTES
_MASKS = "masks"  # subfolder with masks: white counts, black does not
_CAPTIONS = (".txt", ".caption")  # in this order, if a picture has both
_TABLES = ("metadata.jsonl", "captions.csv", "metadata.csv")
_FILE_COLUMNS, _TEXT_COLUMNS = ("file_name", "file", "image", "path"), ("text", "caption", "prompt")
_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini", "__macosx"))  # names that begin with a dot are hidden anyway
_KOHYA = re.compile(r"(\d+)_(\S+)(?: (.+))?")
_MOST_NAMES = 5  # in one note


@dataclass(frozen=True)
class FolderPicture:
    """One picture of a folder."""

    path: Path
    caption: str | None
    mask: Path | None


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of a folder, sorted by name, and notes for the user, one line each.

    `trigger_word` and `class_word` are from the name of a folder that is laid out for kohya's trainer (`10_sks dog`).
    """

    pictures: tuple[FolderPicture, ...]
    notes: tuple[str, ...]
    trigger_word: str | None = None
    class_word: str | None = None


def read_folder(folder: Path, *, masked: bool) -> PictureFolder:
    """Find the pictures of `folder` and what belongs to them. Opens no picture.

    A folder without pictures whose subfolders are named as kohya's trainer wants them, such as `10_sks dog`, has the
    pictures of those subfolders. Raises SpecInvalid if it is no folder, if a caption cannot be read, or if with
    `masked` a mask belongs to no picture.
    """
    if not folder.is_dir():
        raise SpecInvalid.of({"FOLDER": f"{folder} is not a folder"})
    kohya = _kohya_folders(folder)
    parts = [_read_part(part, masked=masked) for part in kohya or [folder]]
    notes = [note for part in parts for note in part.notes]
    if not kohya:
        return PictureFolder(parts[0].pictures, tuple(notes))
    named = _KOHYA.fullmatch(kohya[0].name)
    repeats, trigger_word, class_word = named.groups() if named else ("", None, None)
    notes[:0] = [
        f"read {_names(part.name for part in kohya)}; the repeats in the name ({repeats}) are not used: "
        "set the epochs instead"
    ]
    notes += _other_folders(folder, kohya)
    return PictureFolder(
        tuple(picture for part in parts for picture in part.pictures), tuple(notes), trigger_word, class_word
    )


def _kohya_folders(folder: Path) -> list[Path]:
    """The subfolders such as `10_sks dog`, if `folder` itself has no pictures."""
    entries = sorted(folder.iterdir())
    if any(_is_picture(path) for path in entries):
        return []
    return [
        path
        for path in entries
        if path.is_dir() and _KOHYA.fullmatch(path.name) and any(_is_picture(inside) for inside in path.iterdir())
    ]


def _read_part(folder: Path, *, masked: bool) -> PictureFolder:
    """One folder without its subfolders, but for its masks."""
    entries = sorted(path for path in folder.iterdir() if not _is_hidden(path))
    paths = [path for path in entries if _is_picture(path)]
    captions, notes = _captions(folder, entries, paths)
    masks = _masks(folder, paths)
    if masked and (strays := [mask for mask in masks if mask not in {_stem(path) for path in paths}]):
        raise SpecInvalid.of(
            {f"{_MASKS}/{masks[stem].name}": "no picture has the name of this mask" for stem in sorted(strays)}
        )
    if masks and not masked:
        notes.append(f"the masks in {folder / _MASKS} are not used: add --set objective.masked=true to use them")
    hidden = sum(_is_hidden(path) for path in folder.iterdir())
    if hidden:
        notes.append(f"skipped {hidden} hidden file{'s' * (hidden > 1)}, such as a computer writes beside pictures")
    notes += _other_files(entries) + _other_folders(folder, [folder / _MASKS])
    return PictureFolder(
        tuple(FolderPicture(path, captions.get(path), masks.get(_stem(path)) if masked else None) for path in paths),
        tuple(notes),
    )


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and not _is_hidden(path)


def _plain(name: str) -> str:
    """A name as it is compared: macOS writes "é" as two characters, cameras write suffixes in capitals."""
    return unicodedata.normalize("NFC", name).casefold()


def _stem(path: Path) -> str:
    return _plain(path.stem)


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(listed[:_MOST_NAMES])
    return shown + (f" and {len(listed) - _MOST_NAMES} more" if len(listed) > _MOST_NAMES else "")


# ---- masks ----


def _masks(folder: Path, paths: Sequence[Path]) -> dict[str, Path]:
    """The files in the subfolder `masks/`, by the compared name without its suffix."""
    inside = folder / _MASKS
    found = [path for path in sorted(inside.iterdir()) if _is_picture(path)] if inside.is_dir() else []
    # Of several masks with one name, use the suffix that comes first, whatever their order in the folder.
    found.sort(key=lambda mask: SUFFIXES.index(mask.suffix.lower()), reverse=True)
    return {_stem(mask): mask for mask in found}


# ---- captions ----


def _captions(folder: Path, entries: Sequence[Path], paths: Sequence[Path]) -> tuple[dict[Path, str], list[str]]:
    """The caption of each picture that has one, and notes. Raises SpecInvalid."""
    notes: list[str] = []
    files = {_plain(path.name): path for path in entries if path.is_file()}
    used: set[Path] = set()
    captions: dict[Path, str] = {}
    tables = {name: _table(files[name], notes) for name in _TABLES if name in files}
    for path in paths:
        names = [_plain(base + suffix) for base in (path.stem, path.name) for suffix in _CAPTIONS]
        beside = next((files[name] for name in names if name in files), None)
        if beside is not None:
            used |= {files[name] for name in names if name in files}
            text = _text(beside.name, _start_of(beside, _MAX_CAPTION_BYTES + 1), notes)
        else:
            listed = (table.get(_plain(path.name)) for table in tables.values())
            text = next((text for text in listed if text), "")
        if len(text) > MAX_CAPTION_CHARACTERS:
            name = beside.name if beside else f"the caption of {path.name}"
            raise SpecInvalid.of({name: f"the caption is longer than {MAX_CAPTION_CHARACTERS} characters"})
        if text:
            captions[path] = text
    unused = [path.name for path in entries if path.suffix.lower() in _CAPTIONS and path not in used and path.is_file()]
    if unused:
        notes.append(f"no picture has the name of these captions: {_names(unused)}")
    known = {_plain(path.name) for path in paths}
    for name, table in tables.items():
        if strays := [listed for listed in table if listed not in known]:
            notes.append(f"{name} has captions of files that are not there: {_names(strays)}")
    return captions, notes


def _start_of(path: Path, size_bytes: int) -> bytes:
    """The first bytes of a file, however large it is."""
    with path.open("rb") as file:
        return file.read(size_bytes)


def _text(name: str, raw: bytes, notes: list[str]) -> str:
    """The text of a caption file: UTF-8, UTF-16 by its mark, or else Windows-1252 with a note. Raises SpecInvalid."""
    if len(raw) > _MAX_CAPTION_BYTES and not name.endswith(_TABLES):
        raise SpecInvalid.of({name: f"the caption is longer than {MAX_CAPTION_CHARACTERS} characters"})
    try:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return raw.decode("utf-16").strip()
        return raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        pass
    try:
        text = raw.decode("cp1252").strip()
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable() and any(not one.isprintable() and not one.isspace() for one in text):
        raise SpecInvalid.of({name: "the caption is neither UTF-8, UTF-16 nor Windows-1252 text"})
    notes.append(f"{name} is not UTF-8; read it as Windows-1252")
    return text


def _table(path: Path, notes: list[str]) -> dict[str, str]:
    """Captions by compared file name, from a table of another trainer. Raises SpecInvalid."""
    raw = _start_of(path, _MAX_TABLE_BYTES + 1)
    if len(raw) > _MAX_TABLE_BYTES:
        raise SpecInvalid.of({path.name: f"the file is larger than {_MAX_TABLE_BYTES // 2**20} MB"})
    text = _text(path.name, raw, notes)
    try:
        rows = (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix.lower() == ".jsonl"
            else list(csv.DictReader(io.StringIO(text)))
        )
        found = {}
        for row in rows:
            name = next(row[column] for column in _FILE_COLUMNS if row.get(column))
            found[_plain(Path(str(name)).name)] = str(next((row[one] for one in _TEXT_COLUMNS if row.get(one)), ""))
    except (ValueError, AttributeError, StopIteration, csv.Error) as error:
        raise SpecInvalid.of(
            {path.name: "each line must have file_name and text: " + '{"file_name": "dog1.jpg", "text": "a dog"}'}
        ) from error
    return found


# ---- everything else ----


def _other_files(entries: Sequence[Path]) -> list[str]:
    """A note on each kind of file that is not read."""
    notes, others = [], []
    kinds: dict[str, list[str]] = {}
    for path in entries:
        suffix = path.suffix.lower()
        if not path.is_file() or suffix in SUFFIXES or suffix in _CAPTIONS or path.name.lower() in _TABLES:
            continue
        if kind := OTHER_PICTURES.get(suffix):
            kinds.setdefault(kind, []).append(path.name)
        else:
            others.append(path.name)
    for kind, names in kinds.items():
        notes.append(f"left out {_names(names)}: {kind} is not read; save as JPEG or PNG (accepted: {ACCEPTED})")
    if others:
        notes.append(f"not pictures, and not read: {_names(others)}")
    return notes


def _other_folders(folder: Path, read: Sequence[Path]) -> list[str]:
    """A note on each subfolder that has files."""
    return [
        f"the subfolder {path.name} is not read ({count} file{'s' * (count > 1)})"
        for path in sorted(folder.iterdir())
        if path.is_dir() and path not in read and not _is_hidden(path)
        and (count := sum(inside.is_file() for inside in path.iterdir()))
    ]  # fmt: skip
