"""What a folder has for a training: pictures, their captions and masks, and a note on everything else in it.

Captions are read as other trainers write them: `dog1.txt`, `dog1.caption`, `dog1.jpg.txt`, `metadata.jsonl` (diffusers)
and `captions.csv`. Names are compared without regard to case and Unicode form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import SpecInvalid
from training.data.file_kinds import SUFFIXES
from training.data.folders.caption_files import read_captions
from training.data.folders.file_names import KOHYA, MASKS, compared_stem, is_hidden, is_picture
from training.data.folders.remarks import Remark, hidden_files, other_files, other_folders

MASKS_NOT_USED = "masks are not used"


@dataclass(frozen=True)
class FolderPicture:
    """One picture of a folder. `caption_file` is the file that its caption is from."""

    path: Path
    caption: str | None
    mask: Path | None
    caption_file: str | None = None


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
    named = KOHYA.fullmatch(kohya[0].name)
    repeats, trigger_word, class_word = named.groups() if named else ("", None, None)
    remarks[:0] = [
        Remark(
            f"read {{}}; the repeats in the name ({repeats}) are not used: set the epochs instead",
            tuple(part.name for part in kohya),
        )
    ]
    rest = [path for path in sorted(folder.iterdir()) if path not in kohya]
    remarks += hidden_files(rest) + other_files([path for path in rest if not is_hidden(path)])
    remarks += other_folders(folder, kohya)
    return PictureFolder(
        tuple(picture for part in parts for picture in part.pictures), tuple(remarks), trigger_word, class_word
    )


def _kohya_folders(folder: Path) -> list[Path]:
    """The subfolders such as `10_sks dog`, if `folder` itself has no pictures."""
    entries = sorted(folder.iterdir())
    if any(is_picture(path) for path in entries):
        return []
    return [
        path
        for path in entries
        if path.is_dir() and KOHYA.fullmatch(path.name) and any(is_picture(inside) for inside in path.iterdir())
    ]


def _read_part(folder: Path, *, masked: bool) -> PictureFolder:
    """One folder without its subfolders, but for its masks."""
    entries = sorted(path for path in folder.iterdir() if not is_hidden(path))
    paths = [path for path in entries if is_picture(path)]
    captions, remarks = read_captions(entries, paths)
    masks, of_masks = _masks(folder, paths)
    remarks += of_masks
    if masked and (strays := [mask for mask in masks if mask not in {compared_stem(path.name) for path in paths}]):
        raise SpecInvalid.of(
            {f"{MASKS}/{masks[stem].name}": "no picture has the name of this mask" for stem in sorted(strays)}
        )
    if masks and not masked:
        names = tuple(sorted(f"{MASKS}/{mask.name}" for mask in masks.values()))
        remarks.append(Remark(f"{MASKS_NOT_USED}: set objective.masked to use them: {{}}", names))
    remarks += hidden_files(sorted(folder.iterdir())) + other_files(entries) + other_folders(folder, [folder / MASKS])
    return PictureFolder(
        tuple(
            FolderPicture(
                path,
                captions[path].text if path in captions else None,
                masks.get(compared_stem(path.name)) if masked else None,
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
        paths = [path for path in sorted(part.iterdir()) if is_picture(path)]
        stems = {compared_stem(path.name) for path in paths}
        for stem, mask in sorted(_masks(part, paths)[0].items()):
            (found if stem in stems else strays).append(mask)
    return found, strays


def _masks(folder: Path, paths: Sequence[Path]) -> tuple[dict[str, Path], list[Remark]]:
    """The files in the subfolder `masks/`, by the compared name without its suffix, and remarks on its other files."""
    inside = folder / MASKS
    entries = sorted(inside.iterdir()) if inside.is_dir() else []
    # Of several masks with one name, use the suffix that comes first, whatever their order in the folder.
    found = sorted(filter(is_picture, entries), key=lambda mask: SUFFIXES.index(mask.suffix.lower()), reverse=True)
    masks = {compared_stem(mask.name): mask for mask in found}
    others = [path for path in entries if path not in masks.values() and not is_hidden(path)]
    names = tuple(f"{MASKS}/{path.name}" for path in others)
    return masks, hidden_files(entries) + ([Remark("not used as masks: {}", names)] if names else [])
