"""The command `check`: what a training would make of a folder or an archive. Nothing is stored."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cli.output.terminal import answers, out, print_json
from core.errors import SpecInvalid
from core.settings import Settings, settings
from jobs.requests import training_request
from training.data.decoding.decoder import Decoder
from training.data.folders.archives import opened
from training.data.folders.check import CheckedPicture, check_pictures
from training.data.folders.picture_folder import PictureFolder, read_folder
from training.data.folders.unpack_target import UnpackLimits
from training.data.framing import Frame
from training.families.registry import FAMILIES
from training.spec import MIN_PICTURES


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--family", type=click.Choice(list(FAMILIES)), default="sd15", show_default=True, help="Of the base model."
)
@click.option("--resolution", type=int, help="In pixels, a multiple of 64. Default: the family's.")
@click.option("--aspect-buckets", is_flag=True, help="Judge shapes near those of the pictures instead of squares.")
@answers
def check(folder: Path, *, family: str, resolution: int | None, aspect_buckets: bool, as_json: bool) -> None:
    """Judge the pictures in FOLDER, or in a ZIP or tar archive, for a family and resolution. Nothing is stored.

    Every file is named once: pictures with their verdict and the part that a training would see, other files with the
    reason why they are not used.
    """
    frame = Frame(resolution or int(FAMILIES[family].recipe["resolution"]), aspect_buckets)
    if frame.resolution % 64 or not 64 <= frame.resolution <= 2048:
        raise SpecInvalid.of({"--resolution": "must be a multiple of 64, from 64 to 2048"})
    with opened(folder, limits_of(settings())) as place, decoder_of(settings()) as decoder:
        found = read_folder(place, masked=(place / "masks").is_dir())
        checked = check_pictures(found.pictures, frame, decoder)
    _print_json(found, checked) if as_json else _print(found, checked, frame)


def limits_of(given: Settings) -> UnpackLimits:
    """How much an archive may hold."""
    return UnpackLimits(given.max_picture_bytes, given.max_job_bytes)


def decoder_of(given: Settings) -> Decoder:
    """A decoder with the limits of the settings."""
    return Decoder(max_pixels=given.max_picture_pixels, max_bytes=given.max_picture_bytes)


def _print(found: PictureFolder, checked: list[CheckedPicture], frame: Frame) -> None:
    for one in checked:
        view = one.verdict.view
        seen = f"; seen: {_box(one)} of {_size(one)}, as {view.width} x {view.height}" if one.is_good and view else ""
        caption = f"; caption: {one.picture.caption_file}" if one.picture.caption_file else ""
        mask = f"; mask: masks/{one.picture.mask.name}" if one.picture.mask else ""
        said = "; ".join([*one.verdict.texts, *([] if one.verdict.faults else one.verdict.warnings)])
        state = "good" if one.is_good else "left out"
        _line(f"{one.label}: {state}{f': {said}' if said else ''}{seen}{caption}{mask}")
    for remark in found.remarks:
        _line(f"note: {remark.whole}")
    good = sum(one.is_good for one in checked)
    _line(
        f"{good} of {len(checked)} pictures can be trained on at {frame.resolution} pixels; a training needs at least "
        f"{MIN_PICTURES}"
    )


def _line(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _size(one: CheckedPicture) -> str:
    return f"{one.report.width} x {one.report.height}" if one.report else ""


def _box(one: CheckedPicture) -> str:
    view = one.verdict.view
    assert view is not None  # noqa: S101 - the caller looked
    left, top, right, bottom = (round(side) for side in view.box)
    return f"{right - left} x {bottom - top} at ({left}, {top})"


def _print_json(found: PictureFolder, checked: list[CheckedPicture]) -> None:
    pictures: list[dict[str, Any]] = [
        {
            "name": one.picture.path.name,
            "verdict": "good" if one.is_good else "bad",
            "faults": one.verdict.faults,
            "notes": [*one.verdict.texts, *one.verdict.warnings, *(one.report.notes if one.report else ())],
            "width": one.report.width if one.report else None,
            "height": one.report.height if one.report else None,
            "seen": asdict(one.verdict.view) if one.verdict.view else None,
            "caption": one.picture.caption,
            "caption_file": one.picture.caption_file,
            "mask": one.picture.mask.name if one.picture.mask else None,
        }
        for one in checked
    ]
    others = [{"note": remark.line, "names": remark.names} for remark in found.remarks]
    good = sum(one.is_good for one in checked)
    print_json({"pictures": pictures, "others": others, "good": good, "needed": MIN_PICTURES})


def fitting(checked: list[CheckedPicture], request: training_request.TrainingRequest) -> list[str]:
    """Notes on checked pictures. Raises SpecInvalid, as submitting would, if too few of them fit the request."""
    fewest = MIN_PICTURES + request.spec.validation.held_out
    good = sum(one.is_good for one in checked)
    if good < fewest:
        raise SpecInvalid.of(
            {one.label: "; ".join(one.verdict.texts) for one in checked if not one.is_good}
            | {"FOLDER": f"has {good} pictures that can be trained on; at least {fewest} are needed"}
        )
    return [note for one in checked for note in one.notes]
