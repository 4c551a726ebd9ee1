"""The command `submit`: a training on the pictures of a folder or an archive."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click

from cli.check import decoder_of, fitting, limits_of
from cli.operations.owners import OWNER
from cli.output.show import follow, show
from cli.output.terminal import answers, err, out, print_json, report_unsent
from core.errors import SpecInvalid
from jobs import service
from jobs.requests import quotes, training_request
from jobs.requests.envelope import Origin
from jobs.services import Services, services
from jobs.stages import intake
from jobs.view import JobView
from training.data.file_kinds import ARCHIVE_SUFFIXES
from training.data.folders.archives import opened
from training.data.folders.check import check_pictures
from training.data.folders.picture_folder import read_folder
from training.data.framing import Frame
from training.families.registry import BASE_MODELS, FAMILIES
from training.options import parse_assignments
from training.spec import CaptionSource, Learns, Optimizer


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--owner", "owner_id", type=OWNER, default="me", show_default=True, help="The owner who pays.")
@click.option("--subject", "subject_id", help="What the LoRA learns. Default: the name of FOLDER.")
@click.option("--base-model", default="sd15", show_default=True, help=f"{', '.join(BASE_MODELS)}, a folder or hub id.")
@click.option("--family", help=f"{', '.join(FAMILIES)}; needed for a folder or hub id.")
@click.option(
    "--trigger",
    "trigger_word",
    help="The word for the subject in prompts. Default: that of 10_WORD in FOLDER.",
)
@click.option("--class-word", "class_word", help="What the subject is: dog, woman, mug …")
@click.option(
    "--captions",
    type=click.Choice(get_args(CaptionSource)),
    help="given: yours; auto: have missing ones written; template: the template for all. Default: given.",
)
@click.option(
    "--learns", type=click.Choice(get_args(Learns)), help="What written captions leave out. Default: by the class word."
)
@click.option("--review", is_flag=True, default=None, help="Wait with the captions until they are accepted.")
@click.option("--rank", type=int, help="Default: the family's.")
@click.option("--alpha", type=float, help="Default: the family's.")
@click.option("--learning-rate", type=float, help="Default: the family's.")
@click.option("--optimizer", type=click.Choice(get_args(Optimizer)), help="The optimizer. Default: adamw.")
@click.option("--set", "options", multiple=True, metavar="GROUP.OPTION=VALUE", help="An option of docs/recipe.md.")
@click.option("--resolution", type=int, help="In pixels, a multiple of 64. Default: the family's.")
@click.option("--epochs", type=int, help="1 to 500.")
@click.option("--max-steps", type=int, help="The number of steps; replaces --epochs.")
@click.option("--batch-size", type=int, help="Pictures per step.")
@click.option(
    "--backend", type=click.Choice(["local", "ai-toolkit"]), help="Where to train. Default: the operator's choice."
)
@click.option("--seed", type=int, help="The same seed gives the same LoRA.")
@click.option("--aspect-buckets", is_flag=True, default=None, help="Train at aspect ratios near those of the pictures.")
@click.option("--checkpoint-every", type=int, help="Epochs between checkpoints. Default: 10.")
@click.option("--keep-checkpoints", is_flag=True, default=None, help="Keep the LoRA file of every checkpoint.")
@click.option("--webhook-url", help="Base address for webhooks.")
@click.option("--model-id", help="The id of the model in webhooks and in the key of its file. Default: the job's.")
@click.option("--priority", type=click.Choice(["low", "normal", "high"]), help="Default: normal.")
@click.option("--key", "idempotency_key", help="Idempotency key: the same key returns the same job.")
@click.option("--dry-run", is_flag=True, help="Only show price and duration.")
@click.option("--watch", is_flag=True, help="Follow the job until it ends.")
@answers
def submit(
    folder: Path, *, options: Sequence[str], dry_run: bool, watch: bool, as_json: bool, **arguments: Any
) -> None:
    """Train a LoRA on the pictures in FOLDER, which may also be a ZIP or tar archive.

    A text file with the same name as a picture is its caption; captions as other trainers write them are read too. With
    --set objective.masked=true, a picture with the same name in the folder masks/ is its mask.
    """
    here = services()
    try:
        arguments = {name: value for name, value in arguments.items() if value is not None} | parse_assignments(options)
    except ValueError as error:
        raise SpecInvalid.of({"--set": str(error)}) from error
    arguments.setdefault("subject_id", _name_of(folder))
    with opened(folder, limits_of(here.settings)) as place:
        view = _submit(here, place, arguments, dry_run=dry_run, as_json=as_json)
    if view is None:
        return
    if watch:
        report_unsent()
        view = follow(view.job_id, as_json)
    show(view, as_json)
    if watch and view.status != "ready":
        sys.exit(1)


def _name_of(folder: Path) -> str:
    """The name of a folder, or of an archive without its suffixes."""
    name = folder.resolve().name
    if not folder.is_file():
        return name
    return next((name[: -len(suffix)] for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix)), name)


def _submit(here: Services, folder: Path, arguments: dict[str, Any], *, dry_run: bool, as_json: bool) -> JobView | None:
    """Submit the training, or with `dry_run` only print its price."""
    found = read_folder(folder, masked=False)
    for name in ("trigger_word", "class_word"):
        if name not in arguments and (word := getattr(found, name)):
            arguments[name] = word
    if "trigger_word" not in arguments:
        raise click.UsageError("Missing option '--trigger'.")
    # Validation and price do not depend on the content of the pictures: nothing is stored until both are known.
    asked = arguments | {
        "images": [
            {"ref": f"picture {number}", "caption": picture.caption} for number, picture in enumerate(found.pictures)
        ]
    }
    try:
        request = training_request.parse(asked, here.settings, here.sources)
        if request.spec.objective.masked:
            found = read_folder(folder, masked=True)
    finally:  # the notes explain why there are too few pictures
        for note in found.notes:
            _print_note(note)
    with decoder_of(here.settings) as decoder:
        frame = Frame(request.spec.resolution, request.spec.aspect_buckets)
        notes = fitting(check_pictures(found.pictures, frame, decoder), request)
    for note in notes:
        _print_note(note)
    if dry_run:
        _quote(asked, as_json)
        return None
    store = partial(intake.store_picture, here, request.envelope.owner_id, request.envelope.subject_id)
    images = []
    for picture in found.pictures:
        name = picture.path.name
        image = {"ref": store(picture.path.read_bytes(), name=name), "caption": picture.caption, "name": name}
        if picture.mask:
            image["mask"] = store(picture.mask.read_bytes(), is_mask=True)
        images.append(image)
    return service.submit(here, arguments | {"images": images}, Origin(notes=(*found.notes, *notes)))


def _print_note(note: str) -> None:
    err.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _quote(arguments: dict[str, Any], as_json: bool) -> None:
    quote = quotes.quote(services(), arguments)
    if as_json:
        print_json(asdict(quote))
        return
    known = "measured here" if quote.measured else "an estimate until a similar training has finished here"
    out.print(
        f"{quote.steps} steps, {_credits(quote.credits)} ({quote.available} available), "
        f"about {quote.seconds:.0f} s ({known})"
    )
    out.print(
        "Cancelling before the first step costs nothing; after that the steps done are charged, rounded down: "
        f"{_credits(quote.cancelled_half_way)} halfway", highlight=False,
    )  # fmt: skip
    if quote.licence is not None:
        out.print(f"The licence of the base model: {quote.licence}", highlight=False)


def _credits(count: int) -> str:
    return f"{count} credit{'s' * (count != 1)}"
