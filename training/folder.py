"""A folder of pictures, prepared for a training without any queue, and judged as in the pipeline."""

from dataclasses import dataclass
from pathlib import Path

from core.errors import ImageInvalid, SpecInvalid, TooFewImages
from training import pictures
from training.dataset import Manifest, Picture, build_manifest
from training.decoder import Decoder
from training.ports import Example
from training.spec import MAX_PICTURES, MIN_PICTURES, TrainSpec

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif")
MAX_CAPTION_BYTES = 10_000
MASKS = "masks"  # folder beside the pictures: white counts, black does not


@dataclass(frozen=True)
class Gathered:
    """What a folder gave: examples to train on, their manifest, and why which pictures were left out, by file name."""

    examples: list[Example]
    manifest: Manifest
    left_out: dict[str, str]


def gather(folder: Path, spec: TrainSpec, into: Path) -> Gathered:
    """Prepare every picture of `folder`, by name, as a PNG in `into`; captions are read from `NAME.txt` beside one.

    Raises SpecInvalid if there is no such folder or it has too many pictures, TooFewImages, with every reason, if too
    few of them are good.
    """
    if not folder.is_dir():
        raise SpecInvalid.of({"FOLDER": f"{folder} is no folder"})
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(paths) > MAX_PICTURES:
        raise SpecInvalid.of({"FOLDER": f"{folder} has {len(paths)} pictures, {MAX_PICTURES} are the most"})
    prepared, left_out = _prepared(paths, spec)
    repeats = pictures.near_duplicates([made.report for _, made in prepared])
    for repeat, first in repeats.items():
        left_out[prepared[repeat][0].name] = f"nearly the same as {prepared[first][0].name}"
    good = [pair for place, pair in enumerate(prepared) if place not in repeats]
    fewest = MIN_PICTURES + spec.validation.held_out
    if len(good) < fewest:
        raise TooFewImages(
            f"{folder} has {len(good)} good pictures of {len(paths)}, {fewest} are the fewest"
            + "".join(f"\n  {name}: {reason}" for name, reason in sorted(left_out.items())),
            {"left_out": left_out},
        )
    return _laid_out(good, spec, into, left_out)


def _prepared(paths: list[Path], spec: TrainSpec) -> tuple[list[tuple[Path, pictures.Prepared]], dict[str, str]]:
    """The pictures without a fault, and why which others are left out."""
    prepared: list[tuple[Path, pictures.Prepared]] = []
    left_out: dict[str, str] = {}
    with Decoder() as decoder:
        for path in paths:
            try:
                made = _prepare(decoder, path, spec)
            except (ImageInvalid, OSError) as error:
                left_out[path.name] = str(error)
                continue
            bad = [fault for fault in made.report.faults if fault in pictures.BAD_FAULTS]
            if bad:
                left_out[path.name] = ", ".join(bad).replace("_", " ")
            else:
                prepared.append((path, made))
    return prepared, left_out


def _prepare(decoder: Decoder, path: Path, spec: TrainSpec) -> pictures.Prepared:
    """One picture; where the loss is masked, with the mask beside it, or else with its alpha channel."""
    masked = spec.objective.masked
    mask = mask_beside(path) if masked else None
    return decoder.prepare(
        path.read_bytes(),
        resolution=spec.resolution,
        aspect_buckets=spec.aspect_buckets,
        masked=masked,
        mask=mask.read_bytes() if mask else None,
    )


def _laid_out(
    good: list[tuple[Path, pictures.Prepared]], spec: TrainSpec, into: Path, left_out: dict[str, str]
) -> Gathered:
    """Write the prepared pictures, and tie them to their captions."""
    manifest = build_manifest(
        spec, [Picture(made.sha256, made.width, made.height, caption_beside(path)) for path, made in good]
    )
    examples = []
    for (_, made), told in zip(good, manifest.examples, strict=True):
        png = into / f"{made.sha256}.png"
        png.write_bytes(made.png)
        examples.append(Example(png, told.caption, made.sha256, made.width, made.height))
    return Gathered(examples, manifest, left_out)


def caption_beside(path: Path) -> str | None:
    """What `NAME.txt` beside a picture says, or None. Raises SpecInvalid if it is no text."""
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return None
    try:
        with beside.open("rb") as file:
            return file.read(MAX_CAPTION_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecInvalid.of({beside.name: "the caption is no UTF-8 text"}) from error


def mask_beside(path: Path) -> Path | None:
    """The picture of the same name in `masks/` beside a picture, or None."""
    masks = [path.parent / MASKS / f"{path.stem}{suffix}" for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES))]
    return next((mask for mask in masks if mask.is_file()), None)
