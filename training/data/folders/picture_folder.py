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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import SpecInvalid
from core.picture_names import plain_name
from training.data.file_kinds import ACCEPTED, CAPTION_SUFFIXES, CAPTION_TABLES, OTHER_PICTURES, SUFFIXES
from training.spec import MAX_CAPTION_CHARACTERS

_MAX_CAPTION_BYTES = 8 * MAX_CAPTION_CHARACTERS  # a character has at most four bytes; the rest allows for spaces
_MAX_TABLE_BYTES = 2000 * _MAX_CAPTION_BYTES
_MASKS = "masks"  # subfolder with masks: white counts, black does not
_FILE_COLUMNS, _TEXT_COLUMNS = ("file_name", "file", "image", "path"), ("text", "caption", "prompt")
_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini", "__macosx"))  # names that begin with a dot are hidden anyway
_KOHYA = re.compile(r"(\d+)_(\S+)(?: (.+))?")
MASKS_NOT_USED = "masks are not used"
_MOST_NAMES = 5  # in one note


@dataclass(frozen=True)
class FolderPicture:
    """One picture of a folder. `caption_file` is the file that its caption is from."""

    path: Path
    caption: str | None
    mask: Path | None
    caption_file: str | None = None


@dataclass(frozen=True)
class Remark:
    """What is to say about files of a folder. In `text`, `{}` stands for their names."""

    text: str
    names: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The remark for people, with the first few names."""
        return self.text.replace("{}", _names(self.names, _MOST_NAMES))

    @property
    def whole(self) -> str:
        """The remark with all names."""
        return self.text.replace("{}", _names(self.names, len(self.names)))


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of a folder, sorted by name, and remarks on its other files.

    `trigger_word` and `class_word` are from the name of a folder that is laid out for kohya's trainer (`10_sks dog`).
    """

    pictures: tuple[FolderPicture, ...]
    remarks: tuple[Remark, ...]
    trigger_word: str | None = None
    class_word: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """The remarks for people, one line each."""
        return tuple(remark.line for remark in self.remarks)


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
    remarks = [remark for part in parts for remark in part.remarks]
    if not kohya:
        return PictureFolder(parts[0].pictures, tuple(remarks))
    named = _KOHYA.fullmatch(kohya[0].name)
    repeats, trigger_word, class_word = named.groups() if named else ("", None, None)
    remarks[:0] = [
        Remark(
            f"read {{}}; the repeats in the name ({repeats}) are not used: set the epochs instead",
            tuple(part.name for part in kohya),
        )
    ]
    rest = [path for path in sorted(folder.iterdir()) if path not in kohya]
    remarks += _hidden(rest) + _other_files([path for path in rest if not is_hidden(path)])
    remarks += _other_folders(folder, kohya)
    return PictureFolder(
        tuple(picture for part in parts for picture in part.pictures), tuple(remarks), trigger_word, class_word
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
    entries = sorted(path for path in folder.iterdir() if not is_hidden(path))
    paths = [path for path in entries if _is_picture(path)]
    captions, remarks = _captions(folder, entries, paths)
    masks, of_masks = _masks(folder, paths)
    remarks += of_masks
    if masked and (strays := [mask for mask in masks if mask not in {_stem(path) for path in paths}]):
        raise SpecInvalid.of(
            {f"{_MASKS}/{masks[stem].name}": "no picture has the name of this mask" for stem in sorted(strays)}
        )
    if masks and not masked:
        names = tuple(sorted(f"{_MASKS}/{mask.name}" for mask in masks.values()))
        remarks.append(Remark(f"{MASKS_NOT_USED}: set objective.masked to use them: {{}}", names))
    remarks += _hidden(sorted(folder.iterdir())) + _other_files(entries) + _other_folders(folder, [folder / _MASKS])
    return PictureFolder(
        tuple(
            FolderPicture(
                path,
                captions[path].text if path in captions else None,
                masks.get(_stem(path)) if masked else None,
                captions[path].file if path in captions else None,
            )
            for path in paths
        ),
        tuple(remarks),
    )


def masks_of(folder: Path) -> tuple[list[Path], list[Path]]:
    """The masks of a folder's pictures, by name, and those of no picture. A kohya folder has masks of its own."""
    found: list[Path] = []
    strays: list[Path] = []
    for part in _kohya_folders(folder) or [folder]:
        paths = [path for path in sorted(part.iterdir()) if _is_picture(path)]
        stems = {_stem(path) for path in paths}
        for stem, mask in sorted(_masks(part, paths)[0].items()):
            (found if stem in stems else strays).append(mask)
    return found, strays


def compared_stem(name: str) -> str:
    """A file's name without its suffix, as the names of pictures, captions and masks are compared."""
    return _stem(Path(name))


def is_hidden(path: Path) -> bool:
    """Whether a computer has written the file beside others, and people do not see it."""
    return path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES


def is_special_folder(path: Path) -> bool:
    """Whether a folder's name has a meaning for the folder that it is in."""
    return path.name == _MASKS or _KOHYA.fullmatch(path.name) is not None


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and not is_hidden(path)


def _plain(name: str) -> str:
    """A name as it is compared: macOS writes "é" as two characters, cameras write suffixes in capitals."""
    return unicodedata.normalize("NFC", name).casefold()


def _stem(path: Path) -> str:
    return _plain(path.stem)


def _names(names: Sequence[str], most: int) -> str:
    listed = [plain_name(name) or "a file without a name" for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


# ---- masks ----


def _masks(folder: Path, paths: Sequence[Path]) -> tuple[dict[str, Path], list[Remark]]:
    """The files in the subfolder `masks/`, by the compared name without its suffix, and remarks on its other files."""
    inside = folder / _MASKS
    entries = sorted(inside.iterdir()) if inside.is_dir() else []
    # Of several masks with one name, use the suffix that comes first, whatever their order in the folder.
    found = sorted(filter(_is_picture, entries), key=lambda mask: SUFFIXES.index(mask.suffix.lower()), reverse=True)
    masks = {_stem(mask): mask for mask in found}
    others = [path for path in entries if path not in masks.values() and not is_hidden(path)]
    names = tuple(f"{_MASKS}/{path.name}" for path in others)
    return masks, _hidden(entries) + ([Remark("not used as masks: {}", names)] if names else [])


# ---- captions ----


@dataclass(frozen=True)
class _Caption:
    """The text of a caption, and the name of the file that has it."""

    text: str
    file: str


def _captions(
    folder: Path, entries: Sequence[Path], paths: Sequence[Path]
) -> tuple[dict[Path, _Caption], list[Remark]]:
    """The caption of each picture that has one, and remarks. Raises SpecInvalid."""
    remarks: list[Remark] = []
    files = {_plain(path.name): path for path in entries if path.is_file()}
    used: set[Path] = set()
    second: list[str] = []
    captions: dict[Path, _Caption] = {}
    tables = {name: _table(files[name], remarks) for name in CAPTION_TABLES if name in files}
    for path in paths:
        names = [_plain(base + suffix) for base in (path.stem, path.name) for suffix in CAPTION_SUFFIXES]
        found = [files[name] for name in names if name in files]
        used.update(found)
        second += [path.name for path in found[1:]]
        beside = found[0] if found else None
        if beside is not None:
            caption = _Caption(_text(beside.name, _start_of(beside, _MAX_CAPTION_BYTES + 1), remarks), beside.name)
        else:
            listed = ((table.get(_plain(path.name)), name) for name, table in tables.items())
            caption = next((_Caption(text, files[name].name) for text, name in listed if text), _Caption("", ""))
        if len(caption.text) > MAX_CAPTION_CHARACTERS:
            name = beside.name if beside else f"the caption of {path.name}"
            raise SpecInvalid.of({name: f"the caption is longer than {MAX_CAPTION_CHARACTERS} characters"})
        if caption.text:
            captions[path] = caption
    if second:
        remarks.append(Remark("captions of pictures that have another caption file: {}", tuple(second)))
    if unused := [
        path.name for path in entries if path.suffix.lower() in CAPTION_SUFFIXES and path not in used and path.is_file()
    ]:
        remarks.append(Remark("no picture has the name of these captions: {}", tuple(unused)))
    known = {_plain(path.name) for path in paths}
    for name, table in tables.items():
        if strays := [listed for listed in table if listed not in known]:
            remarks.append(Remark(f"{name} has captions of files that are not there: {{}}", tuple(strays)))
    return captions, remarks


def _start_of(path: Path, size_bytes: int) -> bytes:
    """The first bytes of a file, however large it is."""
    with path.open("rb") as file:
        return file.read(size_bytes)


def _text(name: str, raw: bytes, remarks: list[Remark]) -> str:
    """The text of a caption file: UTF-8, UTF-16 by its mark, or else Windows-1252 with a note. Raises SpecInvalid."""
    if len(raw) > _MAX_CAPTION_BYTES and not name.endswith(CAPTION_TABLES):
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
    remarks.append(Remark("{} is not UTF-8; read it as Windows-1252", (name,)))
    return text


def _table(path: Path, remarks: list[Remark]) -> dict[str, str]:
    """Captions by compared file name, from a table of another trainer. Raises SpecInvalid."""
    raw = _start_of(path, _MAX_TABLE_BYTES + 1)
    if len(raw) > _MAX_TABLE_BYTES:
        raise SpecInvalid.of({path.name: f"the file is larger than {_MAX_TABLE_BYTES // 2**20} MB"})
    text = _text(path.name, raw, remarks)
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


def _hidden(entries: Sequence[Path]) -> list[Remark]:
    """A remark on hidden files and folders."""
    names = tuple(path.name for path in entries if is_hidden(path))
    count = f"{len(names)} hidden file{'s' * (len(names) > 1)}"
    return [Remark(f"skipped {count}, such as a computer writes beside pictures: {{}}", names)] if names else []


def _other_files(entries: Sequence[Path]) -> list[Remark]:
    """A remark on each kind of file that is not read."""
    remarks, others = [], []
    kinds: dict[str, list[str]] = {}
    for path in entries:
        suffix = path.suffix.lower()
        if (
            not path.is_file()
            or suffix in SUFFIXES
            or suffix in CAPTION_SUFFIXES
            or path.name.lower() in CAPTION_TABLES
        ):
            continue
        if kind := OTHER_PICTURES.get(suffix):
            kinds.setdefault(kind, []).append(path.name)
        else:
            others.append(path.name)
    for kind, names in kinds.items():
        text = f"left out {{}}: {kind} is not read; save as JPEG or PNG (accepted: {ACCEPTED})"
        remarks.append(Remark(text, tuple(names)))
    if others:
        remarks.append(Remark("not pictures, and not read: {}", tuple(others)))
    return remarks


def _other_folders(folder: Path, read: Sequence[Path]) -> list[Remark]:
    """A remark on each subfolder that has files."""
    return [
        Remark(f"the subfolder {{}} is not read ({count} file{'s' * (count > 1)})", (path.name,))
        for path in sorted(folder.iterdir())
        if path.is_dir() and path not in read and not is_hidden(path)
        and (count := sum(inside.is_file() for inside in path.rglob("*")))
    ]  # fmt: skip
