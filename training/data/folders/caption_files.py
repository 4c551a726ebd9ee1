"""The captions of a folder's pictures, from files beside them and from tables of other trainers."""

import codecs
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import SpecInvalid
from training.data.file_kinds import CAPTION_SUFFIXES, CAPTION_TABLES
from training.data.folders.file_names import compared_name
from training.data.folders.remarks import Remark
from training.spec import MAX_CAPTION_CHARACTERS

_MAX_CAPTION_BYTES = 8 * MAX_CAPTION_CHARACTERS  # a character has at most four bytes; the rest allows for spaces
_MAX_TABLE_BYTES = 2000 * _MAX_CAPTION_BYTES
_FILE_COLUMNS, _TEXT_COLUMNS = ("file_name", "file", "image", "path"), ("text", "caption", "prompt")


@dataclass(frozen=True)
class Caption:
    """The text of a caption, and the name of the file that has it."""

    text: str
    file: str


def read_captions(entries: Sequence[Path], paths: Sequence[Path]) -> tuple[dict[Path, Caption], list[Remark]]:
    """The caption of each picture that has one, and remarks. Raises SpecInvalid."""
    remarks: list[Remark] = []
    files = {compared_name(path.name): path for path in entries if path.is_file()}
    used: set[Path] = set()
    second: list[str] = []
    captions: dict[Path, Caption] = {}
    tables = {name: _table(files[name], remarks) for name in CAPTION_TABLES if name in files}
    for path in paths:
        names = [compared_name(base + suffix) for base in (path.stem, path.name) for suffix in CAPTION_SUFFIXES]
        found = [files[name] for name in names if name in files]
        used.update(found)
        second += [path.name for path in found[1:]]
        beside = found[0] if found else None
        if beside is not None:
            caption = Caption(_text(beside.name, _start_of(beside, _MAX_CAPTION_BYTES + 1), remarks), beside.name)
        else:
            listed = ((table.get(compared_name(path.name)), name) for name, table in tables.items())
            caption = next((Caption(text, files[name].name) for text, name in listed if text), Caption("", ""))
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
    known = {compared_name(path.name) for path in paths}
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
            found[compared_name(Path(str(name)).name)] = str(
                next((row[one] for one in _TEXT_COLUMNS if row.get(one)), "")
            )
    except (ValueError, AttributeError, StopIteration, csv.Error) as error:
        raise SpecInvalid.of(
            {path.name: "each line must have file_name and text: " + '{"file_name": "dog1.jpg", "text": "a dog"}'}
        ) from error
    return found
