"""`celery -A tasks.app imprint …`: the commands on trainings, and the sections of all commands."""

import getpass
import os
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from cli.caption import caption
from cli.captions import captions
from cli.check import check
from cli.deletion import delete
from cli.fakes import FAKES
from cli.generate import GENERATION
from cli.ingress import ingress
from cli.loras import LORAS
from cli.notices import notices
from cli.operations.accounts import CREDITS, NOTICES
from cli.operations.approvals import approvals
from cli.operations.backends import BACKENDS
from cli.operations.doctor import doctor
from cli.operations.limits import LIMITS
from cli.operations.owners import OWNER, owners
from cli.operations.screening import screening
from cli.operations.sessions import sessions
from cli.operations.tokens import token
from cli.operations.turns import TURNS
from cli.operations.upkeep import UPKEEP
from cli.output.sections import SectionedGroup
from cli.output.show import coloured, follow, show
from cli.output.terminal import answers, out, print_json, report_unsent
from cli.submit import submit
from core.actor import act_as
from core.errors import SpecInvalid
from core.private import make_private
from core.settings import settings
from jobs import checkpoints, service
from jobs.remote.run_views import list_runs
from jobs.requests import envelope
from jobs.services import services
from storage.tables.jobs import Status


@click.group(cls=SectionedGroup)
def imprint() -> None:
    """Train LoRAs and run the service that trains them."""
    make_private(settings().home)
    act_as("command", getpass.getuser())


@click.command()
@click.argument("job_id")
@click.option("--watch", is_flag=True, help="Follow the job until it ends.")
@answers
def status(job_id: str, *, watch: bool, as_json: bool) -> None:
    """Show a job: progress, pictures, cost."""
    view = service.get(services(), job_id)
    view = follow(job_id, as_json) if watch else view
    show(view, as_json, list_runs(services(), job_id), checkpoints.kept(services(), job_id))


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
    subject_id = None if subject_id is None else envelope.subject_name(subject_id)
    views = service.jobs(services(), subject_id=subject_id, **filters)
    if as_json:
        print_json([view.to_dict() for view in views])
        return
    table = Table("job", "owner", "subject", "status", "place", "stage", "step", "loss", "charged", box=None)
    for view in views:
        loss = "" if view.loss is None else f"{view.loss:.4f}"
        table.add_row(
            view.job_id, view.owner_id, view.subject_id, coloured(view), str(view.place or ""), view.stage,
            f"{view.step}/{view.total_steps}", loss, str(view.credits.charged),
        )  # fmt: skip
    out.print(table)


@click.command()
@click.argument("job_id")
@answers
def cancel(job_id: str, *, as_json: bool) -> None:
    """Cancel a job. The steps done are charged, rounded down, and the other credits are released at once."""
    view = service.cancel(services(), job_id)
    show(view, as_json)


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
        view = follow(view.job_id, as_json)
    show(view, as_json)


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


imprint.add_section("Trainings", (submit, status, list_jobs, cancel, retry, download))
imprint.add_section("Pictures", (check, caption, captions))
imprint.add_section("LoRA files", (*GENERATION, *LORAS))
imprint.add_section("Credits", CREDITS)
imprint.add_section("Owners", (owners, sessions, delete, screening, approvals))
imprint.add_section("Notices", (notices, *NOTICES))
imprint.add_section("Backends", BACKENDS)
imprint.add_section("Whose turn it is", (*TURNS, *LIMITS))
imprint.add_section("Installation", (doctor, token, ingress, *UPKEEP))
imprint.add_section("Stand-in servers for development", FAKES)
