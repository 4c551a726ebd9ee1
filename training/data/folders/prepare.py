"""Prepare a folder of pictures, with their captions and masks, as the pipeline does but without a queue."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import ImageInvalid, SpecInvalid, TooFewImages
from core.picture_names import picture_label
from training.data import pictures
from training.data.dataset import DatasetPicture, Manifest, build_manifest
from training.data.decoding.decoder import Decoder
from training.data.folders.archives import opened
from training.data.folders.picture_folder import FolderPicture, read_folder
from training.data.framing import Frame
from training.data.verdict import judge
from training.ports import Example
from training.spec import MAX_PICTURES, MIN_PICTURES, TrainSpec


@dataclass(frozen=True)
class FolderDataset:
    """The dataset of a folder: examples, manifest, and why pictures were left out, in the order of their names."""

    examples: list[Example]
    manifest: Manifest
    left_out: dict[str, str]
    notes: tuple[str, ...]  # on what else is in the folder


@dataclass(frozen=True)
class Uncaptioned:
    """A prepared picture without a caption."""

    name: str  # of its file
    sha256: str
    png: Path


# Captions for such pictures, by their hash.
WriteCaptions = Callable[[Sequence[Uncaptioned]], Mapping[str, str]]


def load_folder(
    folder: Path, spec: TrainSpec, into: Path, write_captions: WriteCaptions = lambda _: {}
) -> FolderDataset:
    """Prepare every picture of `folder`, sorted by name, as a PNG in `into`; `read_folder` says what belongs to it.

    `folder` may also be an archive. `write_captions` is asked for the captions of good pictures that have none; what it
    raises is passed on. Raises SpecInvalid if the folder does not exist, has too many pictures, or has
    captions or masks that do not fit; ArchiveInvalid for an archive that is not accepted; TooFewImages, with all
    reasons, if too few pictures are good.
    """
    with opened(folder) as place:
        return _load(folder, place, spec, into, write_captions)


def _load(folder: Path, place: Path, spec: TrainSpec, into: Path, write_captions: WriteCaptions) -> FolderDataset:
    """Prepare the pictures in `place`, which messages call `folder`."""
    found = read_folder(place, masked=spec.objective.masked)
    if len(found.pictures) > MAX_PICTURES:
        raise SpecInvalid.of(
            {"FOLDER": f"{folder} has {len(found.pictures)} pictures; at most {MAX_PICTURES} are accepted"}
        )
    prepared, reasons, notes = _prepared(found.pictures, spec, into)
    repeats = pictures.near_duplicates([made.report for _, made in prepared])
    for repeat, first in repeats.items():
        reasons[prepared[repeat][0].path] = f"nearly the same as {prepared[first][0].path.name}"
    left_out = {
        picture_label(place, picture.path.name): reasons[picture.path]
        for place, picture in enumerate(found.pictures)
        if picture.path in reasons
    }
    good = [pair for place, pair in enumerate(prepared) if place not in repeats]
    fewest = MIN_PICTURES + spec.validation.held_out
    if len(good) < fewest:
        lines = [f"{name}: {reason}" for name, reason in left_out.items()] + list(found.notes)
        raise TooFewImages(
            f"{folder} has {len(good)} good pictures of {len(found.pictures)}; at least {fewest} are needed"
            + "".join(f"\n  {line}" for line in lines),
            {"left_out": left_out},
        )
    without = [
        Uncaptioned(picture.path.name, made.sha256, _png(into, made.sha256))
        for picture, made in good
        if not (picture.caption or "").strip()
    ]
    captions = write_captions(without) if without else {}
    listed = [
        DatasetPicture(made.sha256, made.width, made.height, picture.caption or captions.get(made.sha256))
        for picture, made in good
    ]
    manifest = build_manifest(spec, listed)
    examples = [
        Example(_png(into, one.sha256), one.caption, one.sha256, one.width, one.height, label=picture.path.name)
        for (picture, _), one in zip(good, manifest.examples, strict=True)
    ]
    return FolderDataset(examples, manifest, left_out, (*found.notes, *notes))


def _prepared(
    found: Sequence[FolderPicture], spec: TrainSpec, into: Path
) -> tuple[list[tuple[FolderPicture, pictures.PreparedImage]], dict[Path, str], list[str]]:
    """The good pictures, why others are left out, and notes on pictures that are enlarged.

    Good ones are written at once and not kept: a thousand would take some gigabytes.
    """
    prepared: list[tuple[FolderPicture, pictures.PreparedImage]] = []
    left_out: dict[Path, str] = {}
    notes: list[str] = []
    with Decoder() as decoder:
        for place, picture in enumerate(found):
            try:
                made = _prepare(decoder, picture.path, picture.mask, spec)
            except (ImageInvalid, OSError) as error:
                left_out[picture.path] = str(error)
                continue
            verdict = judge(made.report, Frame(spec.resolution, spec.aspect_buckets))
            if verdict.faults:
                left_out[picture.path] = "; ".join(verdict.texts)
            else:
                _png(into, made.sha256).write_bytes(made.png)
                prepared.append((picture, replace(made, png=b"")))
                notes += [f"{picture_label(place, picture.path.name)}: {warning}" for warning in verdict.warnings]
    return prepared, left_out, notes


def _prepare(decoder: Decoder, path: Path, mask: Path | None, spec: TrainSpec) -> pictures.PreparedImage:
    """Prepare one picture. If the loss is masked, use its mask file, or else its alpha channel."""
    return decoder.prepare(
        path.read_bytes(),
        resolution=spec.resolution,
        aspect_buckets=spec.aspect_buckets,
        masked=spec.objective.masked,
        mask=mask.read_bytes() if mask else None,
    )


def _png(into: Path, sha256: str) -> Path:
    """The file of a prepared picture."""
    return into / f"{sha256}.png"
