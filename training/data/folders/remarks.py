"""Remarks on the files of a folder that a training does not use, or reads in another way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.picture_names import plain_name
from training.data.file_kinds import ACCEPTED, CAPTION_SUFFIXES, CAPTION_TABLES, OTHER_PICTURES, SUFFIXES
from training.data.folders.file_names import is_hidden

_MOST_NAMES = 5  # in one note


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


def _names(names: Sequence[str], most: int) -> str:
    listed = [plain_name(name) or "a file without a name" for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def hidden_files(entries: Sequence[Path]) -> list[Remark]:
    """A remark on hidden files and folders."""
    names = tuple(path.name for path in entries if is_hidden(path))
    count = len(names)
    text = (
        f"skipped {count} hidden files, such as a computer writes beside pictures: {{}}"
        if count > 1
        else "skipped 1 hidden file, such as a computer writes beside pictures: {}"
    )
    return [Remark(text, names)] if names else []


def other_files(entries: Sequence[Path]) -> list[Remark]:
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


def other_folders(folder: Path, read: Sequence[Path]) -> list[Remark]:
    """A remark on each subfolder that has files."""
    return [
        Remark(
            f"the subfolder {{}} is not read ({count} files)" if count > 1 else "the subfolder {} is not read (1 file)",
            (path.name,),
        )
        for path in sorted(folder.iterdir())
        if path.is_dir() and path not in read and not is_hidden(path)
        and (count := sum(inside.is_file() for inside in path.rglob("*")))
    ]  # fmt: skip
