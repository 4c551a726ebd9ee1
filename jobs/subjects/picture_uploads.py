"""The files of one upload: pictures, captions of pictures, archives of both, and what is none of them.

An upload stores what it can. Every other file is named in a refusal or in a note.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import BinaryIO

from sqlmodel import select

from core.errors import ImageInvalid, SpecInvalid
from core.picture_names import picture_label, plain_name
from core.settings import Settings
from jobs.services import Services
from jobs.subjects import captions, picture_verdicts, subject_notes, subject_pictures
from storage.tables.pictures import StoredPicture
from training.data.file_kinds import CAPTION_SUFFIXES, CAPTION_TABLES, SUFFIXES, archive_kind
from training.data.folders.archives import unpack
from training.data.folders.file_names import is_hidden
from training.data.folders.picture_folder import MASKS_NOT_USED, masks_of, read_folder
from training.data.folders.unpack_target import UnpackLimits

_MAX_CAPTION_FILE_BYTES = 16 * 2**20
_START_BYTES = 512  # of a file, which tell what it is


@dataclass(frozen=True)
class UploadedFile:
    """A file of an upload, as the client named it.

    `label`: how messages name it. None: by its number and its name; empty: not at all, as the client shows the name.
    """

    name: str | None
    content: BinaryIO
    label: str | None = None


@dataclass(frozen=True)
class Refusal:
    """A picture that was not stored. `index` is the position of its file in the upload, from 0."""

    index: int
    code: str
    detail: str


@dataclass(frozen=True)
class UploadPart:
    """One picture of an upload. Several are from one file if that is an archive."""

    index: int
    label: str  # how messages name it
    name: str | None
    read: Callable[[], bytes]
    caption: str | None = None
    is_mask: bool = False


@dataclass
class Upload:
    """What an upload consists of. `parts` are the pictures, in order."""

    parts: list[UploadPart] = field(default_factory=list)
    captions: dict[str, bytes] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@contextmanager
def opened(files: Sequence[UploadedFile], settings: Settings, max_bytes: int) -> Iterator[Upload]:
    """Find the pictures of an upload. Its archives are unpacked into a temporary folder until the block ends.

    `max_bytes` limits the unpacked size of one archive.
    """
    upload = Upload()
    with tempfile.TemporaryDirectory(prefix="imprint-") as temporary:
        limits = UnpackLimits(settings.max_picture_bytes, max_bytes)
        for index, file in enumerate(files):
            folder = Path(temporary) / str(index)
            folder.mkdir()
            _sort(upload, index, file, folder, limits)
        yield upload


def _sort(upload: Upload, index: int, file: UploadedFile, folder: Path, limits: UnpackLimits) -> None:
    """Add a file to the upload, as what it is."""
    name = plain_name(PurePath(file.name or "").name)
    label = picture_label(index, name) if file.label is None else file.label
    archive = (name or "the archive") if file.label is None else file.label
    start = file.content.read(_START_BYTES)
    file.content.seek(0)
    if name is not None and is_hidden(Path(name)):
        upload.notes.append(f"skipped the hidden file {name}, such as a computer writes beside pictures")
    elif archive_kind(start) is not None:
        try:
            _add_archive(upload, index, archive, name, unpack(file.content, folder, limits))
        except (ImageInvalid, SpecInvalid) as error:
            upload.refused.append(Refusal(index, str(ImageInvalid.code), about(archive, _message(error))))
    elif name is not None and (name.lower().endswith(CAPTION_SUFFIXES) or name.lower() in CAPTION_TABLES):
        upload.captions[name] = file.content.read(_MAX_CAPTION_FILE_BYTES)
    else:
        upload.parts.append(UploadPart(index, label, name, _reader(file.content, limits.file_bytes)))


def about(label: str, message: str) -> str:
    """A message with the name of what it is about."""
    return f"{label}: {message}" if label else message


def _add_archive(upload: Upload, index: int, archive: str, name: str | None, folder: Path) -> None:
    """`archive`: how refusals name it. The notes, which stay with the subject, name it always.

    Raises ImageInvalid if it has no pictures and no captions.
    """
    found = read_folder(folder, masked=False)
    if not found.pictures and (texts := _caption_files(folder)):
        upload.captions |= texts  # of pictures of earlier uploads
        return
    inside = f"{archive}, " if archive else ""
    upload.notes += [f"{name or 'the archive'}: {note}" for note in found.notes if not note.startswith(MASKS_NOT_USED)]
    for position, picture in enumerate(found.pictures):
        label = f"{inside}{picture_label(position, plain_name(picture.path.name))}"
        upload.parts.append(UploadPart(index, label, picture.path.name, picture.path.read_bytes, picture.caption))
    masks, strays = masks_of(folder)
    if strays:
        names = ", ".join(f"masks/{plain_name(mask.name)}" for mask in strays)
        upload.notes.append(f"{name or 'the archive'}: no picture has the name of these masks: {names}")
    for mask in masks:
        label = f"{inside}masks/{plain_name(mask.name)}"
        upload.parts.append(UploadPart(index, label, mask.name, mask.read_bytes, is_mask=True))
    if not found.pictures:
        raise ImageInvalid("there are no pictures in it")


def _caption_files(folder: Path) -> dict[str, bytes]:
    """The caption files of an archive without pictures, by name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not is_hidden(path))
    return {
        path.name: path.read_bytes()[:_MAX_CAPTION_FILE_BYTES]
        for path in files
        if path.name.lower().endswith(CAPTION_SUFFIXES) or path.name.lower() in CAPTION_TABLES
    }


def _message(error: ImageInvalid | SpecInvalid) -> str:
    faults = error.faults if isinstance(error, SpecInvalid) else {}
    return "; ".join(f"{name}: {fault}" for name, fault in faults.items()) or error.message


def _reader(content: BinaryIO, limit: int) -> Callable[[], bytes]:
    def read() -> bytes:
        data = content.read(limit + 1)
        if len(data) > limit:
            raise ImageInvalid(f"the file is larger than {limit / 10**6:g} MB; save a smaller one")
        return data

    return read


def store(services: Services, owner_id: str, subject_id: str, part: UploadPart, *, is_mask: bool = False) -> str:
    """Store one picture or mask; returns its id. Raises what `subject_pictures.add` raises."""
    is_mask = is_mask or part.is_mask
    return subject_pictures.add(services, owner_id, subject_id, part.read(), is_mask=is_mask, name=part.name)


def finish(
    services: Services, owner_id: str, subject_id: str, upload: Upload, stored: Mapping[str, UploadPart]
) -> list[str]:
    """Give the stored pictures their captions; returns the notes of the upload, which the subject keeps for a while.

    `stored` has the part of each stored picture by its id. A caption file also fits a picture of an earlier upload.
    """
    texts: dict[str, str | None] = {
        picture_id: part.caption for picture_id, part in stored.items() if part.caption is not None
    }
    notes = list(upload.notes)
    if masks := sum(part.is_mask for part in stored.values()):
        words = "1 mask was stored" if masks == 1 else f"{masks} masks were stored"
        notes.append(f"{words}; a training with objective.masked uses each for the picture of its name")
    if upload.captions:
        beside, more = _captions_beside(services, owner_id, subject_id, upload.captions)
        texts |= beside
        notes += more
    if texts:
        captions.set_all(services, owner_id, subject_id, texts, kind="upload")
    subject_notes.add(services, owner_id, subject_id, notes)
    return notes


def _captions_beside(
    services: Services, owner_id: str, subject_id: str, files: Mapping[str, bytes]
) -> tuple[dict[str, str | None], list[str]]:
    """The captions of these files by the id of the subject's picture that has the name, and notes."""
    ids: dict[str, list[str]] = {}
    with services.database.reading() as session:
        query = select(StoredPicture.id, StoredPicture.name).where(
            *picture_verdicts.belongs_to(owner_id, subject_id, is_mask=False)
        )
        for picture_id, name in session.exec(query):
            if name and name.lower().endswith(SUFFIXES) and PurePath(name).name == name:
                ids.setdefault(name, []).append(picture_id)
    with tempfile.TemporaryDirectory(prefix="imprint-") as temporary:
        folder = Path(temporary)
        for name in ids:
            (folder / name).touch()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        try:
            found = read_folder(folder, masked=False)
        except SpecInvalid as error:
            return {}, [f"captions were not used: {_message(error)}"]
    texts: dict[str, str | None] = {
        picture_id: picture.caption
        for picture in found.pictures
        if picture.caption is not None
        for picture_id in ids[picture.path.name]
    }
    return texts, list(found.notes)
