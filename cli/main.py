"""`celery -A tasks.app imprint …`: the commands on trainings, and the sections of all commands."""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
from rich.markup import escape
from rich.table import Table

from cli.backends import BACKENDS
from cli.doctor import doctor
from cli.fakes import FAKES
from cli.generate import GENERATION
from cli.ingress import ingress
from cli.loras import LORAS
from cli.notices import notices
from cli.operators import CREDITS, NOTICES
from cli.owners import OWNER, owners
from cli.sections import SectionedGroup
from cli.sessions import sessions
from cli.terminal import answers, err, out, print_json, report_unsent
from cli.tokens import token
from cli.upkeep import UPKEEP
from core.errors import SpecInvalid
from core.private import make_private
from core.settings import settings
from jobs import checkpoints, quotes, service
from jobs.checkpoints import CheckpointView
from jobs.remote.run_views import RemoteRunView
from jobs.requests import training_request
from jobs.services import services
from jobs.stages import intake
from jobs.view import JobView
from storage.tables import Status
from training.data.picture_folder import read_folder
from training.families.registry import BASE_MODELS, FAMILIES
from training.options import parse_assignments
from training.spec import Optimizer


@click.group(cls=SectionedGroup)
def imprint() -> None:
    """Train LoRAs and run the service that trains them."""
    make_private(settings().home)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--owner", "owner_id", type=OWNER, default="me", show_default=True, help="The owner who pays.")
@click.option("--subject", "subject_id", help="What the LoRA learns. Default: the name of FOLDER.")
@click.option("--base-model", default="sd15", show_default=True, help=f"{', '.join(BASE_MODELS)}, a folder or hub id.")
@click.option("--family", help=f"{', '.join(FAMILIES)}; needed for a folder or hub id.")
@click.option(
    "--trigger",
    "trigger_word",
    help="The word that stands for the subject in prompts. Default: that of 10_WORD in FOLDER.",
)
@click.option("--class-word", "class_word", help="What the subject is: dog, woman, mug …")
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
@click.option("--key", "idempotency_key", help="Idempotency key: the same key returns the same job.")
@click.option("--dry-run", is_flag=True, help="Only show price and duration.")
@click.option("--watch", is_flag=True, help="Follow the job until it ends.")
@answers
def submit(
    folder: Path, *, options: Sequence[str], dry_run: bool, watch: bool, as_json: bool, **arguments: Any
) -> None:
    """Train a LoRA on the pictures in FOLDER.

    A text file with the same name as a picture is its caption; captions as other trainers write them are read too. With
    --set objective.masked=true, a picture with the same name in the folder masks/ is its mask.
    """
    here = services()
    try:
        arguments = {name: value for name, value in arguments.items() if value is not None} | parse_assignments(options)
    except ValueError as error:
        raise SpecInvalid.of({"--set": str(error)}) from error
    arguments.setdefault("subject_id", folder.resolve().name)
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
            err.print(f"note: {note}", markup=False, highlight=False)
    if dry_run:
        _quote(asked, as_json)
        return
    store = partial(intake.store_picture, here, request.envelope.owner_id, request.envelope.subject_id)
    images = []
    for picture in found.pictures:
        name = picture.path.name
        image = {"ref": store(picture.path.read_bytes(), name=name), "caption": picture.caption, "name": name}
        if picture.mask:
            image["mask"] = store(picture.mask.read_bytes(), is_mask=True)
        images.append(image)
    view = service.submit(here, arguments | {"images": images})
    if watch:
        report_unsent()
        view = _watch(view.job_id, as_json)
    _show(view, as_json)
    if watch and view.status != "ready":
        sys.exit(1)


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


def _watch(job_id: str, as_json: bool) -> JobView:
    from cli.watch import watch

    try:
        return watch(services(), job_id, err if as_json else out)
    except KeyboardInterrupt:
        err.print(f"\nThe job continues. Follow it again with: celery -A tasks.app imprint status {job_id} --watch")
        sys.exit(130)


@click.command()
@click.argument("job_id")
@click.option("--watch", is_flag=True, help="Follow the job until it ends.")
@answers
def status(job_id: str, *, watch: bool, as_json: bool) -> None:
    """Show a job: progress, pictures, cost."""
    view = service.get(services(), job_id)
    view = _watch(job_id, as_json) if watch else view
    _show(view, as_json, service.remote_runs(services(), job_id), checkpoints.kept(services(), job_id))


@click.command(name="list")
@click.option("--owner", "owner_id", type=OWNER, help="Only jobs of this owner.")
@click.option("--subject", "subject_id", help="Only jobs of this subject.")
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([status.value for status in Status]),
    help="Only jobs with this status; may be repeated.",
)
@click.option("--active", is_flag=True, help="Only jobs that have not ended.")
@click.option("--limit", default=20, show_default=True, help="How many jobs to list.")
@answers
def list_jobs(subject_id: str | None, *, as_json: bool, **filters: Any) -> None:
    """List jobs, newest first."""
    subject_id = None if subject_id is None else training_request.subject_name(subject_id)
    views = service.jobs(services(), subject_id=subject_id, **filters)
    if as_json:
        print_json([view.to_dict() for view in views])
        return
    table = Table("job", "owner", "subject", "status", "stage", "step", "loss", "charged", box=None)
    for view in views:
        loss = "" if view.loss is None else f"{view.loss:.4f}"
        table.add_row(
            view.job_id, view.owner_id, view.subject_id, _coloured(view), view.stage,
            f"{view.step}/{view.total_steps}", loss, str(view.credits.charged),
        )  # fmt: skip
    out.print(table)


@click.command()
@click.argument("job_id")
@answers
def cancel(job_id: str, *, as_json: bool) -> None:
    """Cancel a job. The steps done are charged, rounded down, and the other credits are released at once."""
    view = service.cancel(services(), job_id)
    _show(view, as_json)


@click.command()
@click.argument("job_id")
@click.option("--key", help="Idempotency key: the same key starts one new job.")
@click.option("--watch", is_flag=True, help="Follow the new job until it ends.")
@answers
def retry(job_id: str, *, key: str | None, watch: bool, as_json: bool) -> None:
    """Start a new job like JOB_ID, which has ended.

    The new job has the same pictures and recipe.
    """
    view = service.retry(services(), job_id, key=key)
    if watch:
        report_unsent()
        view = _watch(view.job_id, as_json)
    _show(view, as_json)


@click.command()
@click.argument("job_id")
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--checkpoint", type=int, metavar="STEP", help="The LoRA of a kept checkpoint instead.")
@answers
def download(job_id: str, path: Path, *, checkpoint: int | None, as_json: bool) -> None:
    """Copy a ready job's LoRA file to PATH."""
    if not os.access(path.parent, os.W_OK):  # otherwise the object store would seem to have failed
        raise SpecInvalid.of({"PATH": f"nothing can be written into {path.parent.resolve()}"})
    if checkpoint is None:
        lora = service.download(services(), job_id, path)
    else:
        lora = checkpoints.download(services(), job_id, checkpoint, path)
    print_json({"path": str(path)} | lora.to_dict()) if as_json else out.print(f"{path}  sha256 {lora.sha256}")


def _coloured(view: JobView) -> str:
    colour = {"ready": "green", "failed": "red", "cancelled": "yellow"}.get(view.status, "cyan")
    return f"[{colour}]{view.status}[/]"


def _show(
    view: JobView,
    as_json: bool,
    runs: Sequence[RemoteRunView] | None = None,
    kept: Sequence[CheckpointView] | None = None,
) -> None:
    if as_json:
        lists = {"remote_runs": runs, "checkpoints": kept}
        more = {name: [one.to_dict() for one in found] for name, found in lists.items() if found is not None}
        print_json(view.to_dict() | more)
        return
    out.print(
        f"{view.job_id}  {_coloured(view)}  stage {view.stage}  step {view.step}/{view.total_steps}  "
        f"held {view.credits.held}  charged {view.credits.charged}", highlight=False,
    )  # fmt: skip
    for picture in view.pictures:
        if picture.faults:
            why = (picture.report or {}).get("error", "")
            out.print(
                f"  {escape(picture.label)}: [yellow]{', '.join(picture.faults)}[/] {escape(why)}",
                highlight=False,
            )
    for run in runs or ():
        out.print(
            f"  attempt {run.attempt} on {run.server or 'no server yet'}: {run.state}, step {run.step}, "
            f"{run.cost_dollars:.4f} $  {run.reason or run.status}", highlight=False, markup=False,
        )  # fmt: skip
    for checkpoint in kept or ():
        out.print(f"  checkpoint of step {checkpoint.step}  {checkpoint.key}", highlight=False)
    if view.failure:
        out.print(f"  [red]{view.failure.code}[/]: {view.failure.message}", highlight=False)
    if view.lora:
        out.print(
            f"  LoRA {view.lora.key}  {view.lora.bytes} bytes  sha256 {view.lora.sha256}",
            highlight=False,
        )


imprint.add_section("Trainings", (submit, status, list_jobs, cancel, retry, download))
imprint.add_section("LoRA files", (*GENERATION, *LORAS))
imprint.add_section("Credits", CREDITS)
imprint.add_section("Owners", (owners, sessions))
imprint.add_section("Notices", (notices, *NOTICES))
imprint.add_section("Backends", BACKENDS)
imprint.add_section("Installation", (doctor, token, ingress, *UPKEEP))
imprint.add_section("Stand-in servers for development", FAKES)
