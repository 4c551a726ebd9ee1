"""The command `caption`: captions for a folder of pictures, as text files beside them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click
from pydantic import ValidationError

from cli.check import decoder_of
from cli.output.terminal import answers, err, out, print_json
from core.errors import ImageInvalid, SpecInvalid
from core.settings import settings
from jobs.requests import envelope
from training.captioning import wording
from training.captioning.instructions import prompt_for
from training.data.folders.picture_folder import FolderPicture, read_folder
from training.spec import Learns, TrainSpec

_PIXELS = 768  # what the captioner looks at


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--trigger", "trigger_word", required=True, help="The word for the subject in prompts.")
@click.option("--class-word", default="", help="What the subject is: dog, woman, mug …")
@click.option(
    "--learns", type=click.Choice(get_args(Learns)), help="What the captions leave out. Default: by the class word."
)
@click.option("--captioner", help="A folder or hub id of a Florence-2 model. Default: IMPRINT_CAPTIONER.")
@answers
def caption(
    folder: Path, *, trigger_word: str, class_word: str, learns: Learns | None, captioner: str | None, as_json: bool
) -> None:
    """Write a caption for each picture in FOLDER that has none, as a text file beside it.

    The captioner runs on this machine. Look at the captions before you train.
    """
    here = settings()
    location = captioner or here.captioner
    if location is None:
        raise SpecInvalid.of({"--captioner": "give a Florence-2 model, or set IMPRINT_CAPTIONER"})
    words = {"trigger_word": trigger_word, "class_word": class_word, "learns": learns}
    try:
        spec = TrainSpec.model_validate({"base_model": "sd15", "seed": 0, **words})
    except ValidationError as error:
        raise SpecInvalid.of(envelope.faults_of(error)) from None
    found = read_folder(folder, masked=False)
    for note in found.notes:
        err.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    without = [picture for picture in found.pictures if not (picture.caption or "").strip()]
    written = _written(without, spec, location)
    if as_json:
        print_json([{"picture": path.name, "caption": text} for path, text in written.items()])
        return
    for path, text in written.items():
        out.print(f"{path.name}: {text or 'the captioner said nothing'}", markup=False, highlight=False, soft_wrap=True)
    count = sum(text is not None for text in written.values())
    out.print(f"{count} of {len(found.pictures)} pictures got a caption; {len(found.pictures) - len(without)} had one")


def _written(pictures: Sequence[FolderPicture], spec: TrainSpec, location: str) -> dict[Path, str | None]:
    """The captions of the pictures, as they were written beside them. Pictures that cannot be read are named."""
    from training.captioning.captioner import CaptionOrder, write_captions  # torch

    said: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="imprint-") as temporary, decoder_of(settings()) as decoder:
        prepared: dict[str, tuple[Path, Path]] = {}
        for picture in pictures:
            try:
                made = decoder.prepare(picture.path.read_bytes(), resolution=_PIXELS, aspect_buckets=True)
            except (ImageInvalid, OSError) as error:
                err.print(f"note: {picture.path.name}: {error}", markup=False, highlight=False, soft_wrap=True)
                continue
            png = Path(temporary) / f"{len(prepared)}.png"
            png.write_bytes(made.png)
            prepared[png.name] = png, picture.path
        order = CaptionOrder(
            location, prompt_for(spec, location).instruction, {name: png for name, (png, _) in prepared.items()},
            settings().device,
        )  # fmt: skip
        write_captions(order, lambda: None, said.update)
    written = {path: wording.finish(spec, said[name]) for name, (_, path) in prepared.items()}
    for path, text in written.items():
        if text is not None:
            path.with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")
    return written
