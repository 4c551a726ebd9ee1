"""Prepare a folder of pictures, with their captions and masks, as the pipeline does but without a queue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import ImageInvalid, SpecInvalid, TooFewImages
from core.picture_names import picture_label
from training.data import pictures
from training.data.dataset import DatasetPicture, Manifest, build_manifest
from training.data.decoder import Decoder
from training.ports import Example
from training.spec import MAX_CAPTION_CHARACTERS, MAX_PICTURES, MIN_PICTURES, TrainSpec

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif")
_MAX_CAPTION_BYTES = 8 * MAX_CAPTION_CHARACTERS  # a character has at most four bytes; the rest allows for spaces
_MASKS = "masks"  # subfolder with masks: white counts, black does not


@dataclass(frozen=True)
class FolderDataset:
    """The dataset of a folder: examples, manifest, and why pictures were left out, in the order of their names."""

    examples: list[Example]
    manifest: Manifest
    left_out: dict[str, str]


def load_folder(folder: Path, spec: TrainSpec, into: Path) -> FolderDataset:
    """Prepare every picture of `folder`, sorted by name, as a PNG in `into`. Captions come from `NAME.txt` files.

    Raises SpecInvalid if the folder does not exist, has too many pictures, or has captions or masks that do not fit;
    TooFewImages, with all reasons, if too few pictures are good.
    """
    if not folder.is_dir():
        raise SpecInvalid.of({"FOLDER": f"{folder} is not a folder"})
    paths = pictures_of(folder)
    if len(paths) > MAX_PICTURES:
        raise SpecInvalid.of({"FOLDER": f"{folder} has {len(paths)} pictures; at most {MAX_PICTURES} are accepted"})
    prepared, reasons = _prepared(paths, masks_of(folder, paths) if spec.objective.masked else {}, spec)
    repeats = pictures.near_duplicates([made.report for _, made in prepared])
    for repeat, first in repeats.items():
        reasons[prepared[repeat][0]] = f"nearly the same as {prepared[first][0].name}"
    left_out = {picture_label(place, path.name): reasons[path] for place, path in enumerate(paths) if path in reasons}
    good = [pair for place, pair in enumerate(prepared) if place not in repeats]
    fewest = MIN_PICTURES + spec.validation.held_out
    if len(good) < fewest:
        raise TooFewImages(
            f"{folder} has {len(good)} good pictures of {len(paths)}; at least {fewest} are needed"
            + "".join(f"\n  {name}: {reason}" for name, reason in left_out.items()),
            {"left_out": left_out},
        )
    return _laid_out(good, spec, into, left_out)


def _prepared(
    paths: list[Path], masks: Mapping[Path, Path], spec: TrainSpec
) -> tuple[list[tuple[Path, pictures.PreparedImage]], dict[Path, str]]:
    """The good pictures, and why others are left out."""
    prepared: list[tuple[Path, pictures.PreparedImage]] = []
    left_out: dict[Path, str] = {}
    with Decoder() as decoder:
        for path in paths:
            try:
                made = _prepare(decoder, path, masks.get(path), spec)
            except (ImageInvalid, OSError) as error:
                left_out[path] = str(error)
                continue
            bad = [fault for fault in made.report.faults if fault in pictures.BAD_FAULTS]
            if bad:
                left_out[path] = ", ".join(bad).replace("_", " ")
            else:
                prepared.append((path, made))
    return prepared, left_out


def _prepare(decoder: Decoder, path: Path, mask: Path | None, spec: TrainSpec) -> pictures.PreparedImage:
    """Prepare one picture. If the loss is masked, use its mask file, or else its alpha channel."""
    return decoder.prepare(
        path.read_bytes(),
        resolution=spec.resolution,
        aspect_buckets=spec.aspect_buckets,
        masked=spec.objective.masked,
        mask=mask.read_bytes() if mask else None,
    )


def _laid_out(
    good: list[tuple[Path, pictures.PreparedImage]], spec: TrainSpec, into: Path, left_out: dict[str, str]
) -> FolderDataset:
    """Write the prepared pictures, and build their manifest."""
    manifest = build_manifest(
        spec, [DatasetPicture(made.sha256, made.width, made.height, caption_beside(path)) for path, made in good]
    )
    examples = []
    for (path, made), listed in zip(good, manifest.examples, strict=True):
        png = into / f"{made.sha256}.png"
        png.write_bytes(made.png)
        examples.append(Example(png, listed.caption, made.sha256, made.width, made.height, label=path.name))
    return FolderDataset(examples, manifest, left_out)


def pictures_of(folder: Path) -> list[Path]:
    """The picture files of `folder`, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())


def caption_beside(path: Path) -> str | None:
    """The text of `NAME.txt` beside a picture, or None. Raises SpecInvalid if it is not text or too long."""
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return None
    with beside.open("rb") as file:
        raw = file.read(_MAX_CAPTION_BYTES + 1)
    try:
        text = raw.decode("utf-8-sig").strip() if len(raw) <= _MAX_CAPTION_BYTES else None
    except UnicodeDecodeError as error:
        raise SpecInvalid.of({beside.name: "the caption is not UTF-8 text"}) from error
    if text is None or len(text) > MAX_CAPTION_CHARACTERS:
        raise SpecInvalid.of({beside.name: f"the caption is longer than {MAX_CAPTION_CHARACTERS} characters"})
    return text or None


def masks_of(folder: Path, paths: Sequence[Path]) -> dict[Path, Path]:
    """The masks of the pictures: the files of the same name in the subfolder `masks/`.

    Raises SpecInvalid if a mask matches no picture: ignoring it silently would surprise the user.
    """
    found = pictures_of(folder / _MASKS) if (folder / _MASKS).is_dir() else []
    # Of several masks with one name, use the suffix that comes first, whatever their order in the folder.
    found.sort(key=lambda mask: _SUFFIXES.index(mask.suffix.lower()), reverse=True)
    masks = {mask.stem: mask for mask in found}
    if strays := masks.keys() - {path.stem for path in paths}:
        raise SpecInvalid.of(
            {f"{_MASKS}/{masks[stem].name}": "no picture has the name of this mask" for stem in sorted(strays)}
        )
    return {path: masks[path.stem] for path in paths if path.stem in masks}


def unused_captions(folder: Path) -> str | None:
    """A note for the user if captions have names that other trainers use, and Imprint does not; else None."""
    found = [
        path.name
        for path in sorted(folder.iterdir())
        if path.suffix.lower() == ".caption"
        or path.name.lower() in ("metadata.jsonl", "metadata.csv")
        or path.name.lower().endswith(tuple(f"{suffix}.txt" for suffix in _SUFFIXES))
    ]
    if not found:
        return None
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{found[0]}{more} are not read: a caption is the text file of a picture's own name, such as dog1.txt"


def unused_masks(folder: Path, spec: TrainSpec) -> str | None:
    """A note for the user if the folder has masks that the recipe does not use; else None."""
    if spec.objective.masked or not (folder / _MASKS).is_dir():
        return None
    return f"the masks in {folder / _MASKS} are not used: add --set objective.masked=true to use them"
