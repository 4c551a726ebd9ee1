"""`celery -A tasks.app imprint …`: submit, watch, cancel, retry, and the credits, from a terminal."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from core.errors import ImprintError, InsufficientCredits, SpecInvalid
from jobs import accounts, intake, service, sweeps
from jobs.view import View
from jobs.wiring import house
from training.spec import BASE_MODELS

_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".avif"}
# A pipe has no width: lines stay whole for grep.
out = Console(width=None if sys.stdout.isatty() else 240)
err = Console(stderr=True)


@click.group()
def imprint() -> None:
    """Train LoRAs: submit pictures, watch, cancel, retry; grant credits and check the books."""


def _answers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--json`; turn our errors into a message and an exit code (2 for a bad request, else 1)."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people.")
    @wraps(command)
    def run(*args: Any, as_json: bool, **kwargs: Any) -> None:
        try:
            command(*args, as_json=as_json, **kwargs)
        except ImprintError as error:
            if as_json:
                _print_json({"error": error.code, "message": error.message, "details": error.details})
            elif isinstance(error, SpecInvalid) and error.faults:
                err.print("[red]The request cannot be accepted:[/]")
                for name, fault in error.faults.items():
                    err.print(f"  [bold]{name}[/]: {fault}", highlight=False)
            else:
                err.print(f"[red]{error.code}[/]: {error.message}", highlight=False)
            if isinstance(error, InsufficientCredits) and not as_json:
                err.print("An operator grants some: celery -A tasks.app imprint grant OWNER CREDITS", highlight=False)
            sys.exit(2 if isinstance(error, SpecInvalid) else 1)

    return run


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value))


@imprint.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--owner", "owner_id", default="me", show_default=True, help="Who pays.")
@click.option("--subject", "subject_id", help="What is learnt; the folder's name if not given.")
@click.option("--base-model", default="sd15", show_default=True, help=f"{', '.join(BASE_MODELS)}, a folder or hub id.")
@click.option("--family", help="sd15, sdxl or z-image: for a folder or hub id.")
@click.option("--trigger", "trigger_word", required=True, help="The word that will call the subject.")
@click.option("--class-word", "class_word", help="What the subject is: dog, woman, mug …")
@click.option("--rank", type=int, help="Default: the family's.")
@click.option("--alpha", type=float, help="Default: the family's.")
@click.option("--learning-rate", type=float, help="Default: the family's.")
@click.option("--resolution", type=int, help="In pixels, a multiple of 64. Default: the family's.")
@click.option("--epochs", type=int, help="10 to 500.")
@click.option("--max-steps", type=int, help="Instead of epochs.")
@click.option("--batch-size", type=int)
@click.option("--seed", type=int)
@click.option("--aspect-buckets", is_flag=True, default=None, help="Keep shapes near the pictures' own.")
@click.option("--webhook-url", help="Base address that notices are sent to.")
@click.option("--key", "idempotency_key", help="The same key gives the same job.")
@click.option("--dry-run", is_flag=True, help="Only say what it would cost and how long it would take.")
@click.option("--watch", is_flag=True, help="Follow the job to its end.")
@_answers
def submit(folder: Path, *, dry_run: bool, watch: bool, as_json: bool, **arguments: Any) -> None:
    """Train a LoRA on the pictures of FOLDER. A text file beside a picture, with its name, is its caption."""
    here = house()
    arguments = {name: value for name, value in arguments.items() if value is not None}
    arguments.setdefault("subject_id", folder.resolve().name)
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _PICTURES)
    if dry_run:
        # A price depends on how many pictures there are, not on which: none is stored for it.
        _quote(arguments | {"images": [{"ref": f"picture {number}"} for number, _ in enumerate(files)]}, as_json)
        return
    images = []
    for file in files:
        reference = intake.store_picture(here, arguments["owner_id"], arguments["subject_id"], file.read_bytes())
        images.append({"ref": reference, "caption": _caption(file)})
    view = service.submit(here, arguments | {"images": images})
    _relay()
    if watch:
        view = _watch(view["job_id"], as_json)
    _show(view, as_json)
    if watch and view["status"] != "ready":
        sys.exit(1)


def _quote(arguments: dict[str, Any], as_json: bool) -> None:
    quote = service.quote(house(), arguments)
    if as_json:
        _print_json(asdict(quote))
        return
    known = "measured here" if quote.measured else "a guess until a training like it ended here"
    out.print(
        f"{quote.steps} steps, {quote.credits} credit{'s' * (quote.credits != 1)} ({quote.available} available), "
        f"about {quote.seconds:.0f} s ({known})"
    )


def _caption(picture: Path) -> str | None:
    text = picture.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() or None if text.is_file() else None


def _watch(job_id: str, as_json: bool) -> View:
    from tasks.watch import watch

    try:
        return watch(house(), job_id, err if as_json else out)
    except KeyboardInterrupt:
        err.print(f"\nThe job goes on. Look again with: celery -A tasks.app imprint status {job_id} --watch")
        sys.exit(130)


@imprint.command()
@click.argument("job_id")
@click.option("--watch", is_flag=True, help="Follow the job to its end.")
@_answers
def status(job_id: str, *, watch: bool, as_json: bool) -> None:
    """Show a job: where it stands, its pictures' verdicts, what it cost."""
    view = service.look(house(), job_id)
    _show(_watch(job_id, as_json) if watch else view, as_json)


@imprint.command(name="list")
@click.option("--owner", "owner_id", help="Only this owner's.")
@click.option("--active", is_flag=True, help="Only those that are not final.")
@click.option("--limit", default=20, show_default=True)
@_answers
def list_jobs(owner_id: str | None, *, active: bool, limit: int, as_json: bool) -> None:
    """List jobs, newest first."""
    views = service.jobs(house(), owner_id=owner_id, active=active, limit=limit)
    if as_json:
        _print_json(views)
        return
    table = Table("job", "owner", "subject", "status", "stage", "step", "loss", "charged", box=None)
    for view in views:
        loss = "" if view["loss"] is None else f"{view['loss']:.4f}"
        table.add_row(
            view["job_id"], view["owner_id"], view["subject_id"], _coloured(view), view["stage"],
            f"{view['step']}/{view['total_steps']}", loss, str(view["credits"]["charged"]),
        )  # fmt: skip
    out.print(table)


@imprint.command()
@click.argument("job_id")
@_answers
def cancel(job_id: str, *, as_json: bool) -> None:
    """Cancel a job; its credits come back at once."""
    view = service.cancel(house(), job_id)
    _relay()
    _show(view, as_json)


@imprint.command()
@click.argument("job_id")
@click.option("--watch", is_flag=True, help="Follow the new job to its end.")
@_answers
def retry(job_id: str, *, watch: bool, as_json: bool) -> None:
    """Train again what ended, as a new job with the same pictures and recipe."""
    view = service.retry(house(), job_id)
    _relay()
    _show(_watch(view["job_id"], as_json) if watch else view, as_json)


@imprint.command()
@click.argument("job_id")
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@_answers
def download(job_id: str, path: Path, *, as_json: bool) -> None:
    """Copy a ready job's LoRA file to PATH."""
    view = service.download(house(), job_id, path)
    _print_json({"path": str(path)} | view["lora"]) if as_json else out.print(
        f"{path}  sha256 {view['lora']['sha256']}"
    )


@imprint.command()
@click.argument("owner_id")
@click.argument("amount", metavar="CREDITS", type=int)
@click.option("--key", help="The same key grants once.")
@_answers
def grant(owner_id: str, amount: int, *, key: str | None, as_json: bool) -> None:
    """Give OWNER_ID a number of CREDITS."""
    _show_balance(owner_id, asdict(accounts.grant(house(), owner_id, amount, key)), as_json)


@imprint.command()
@click.argument("owner_id")
@_answers
def balance(owner_id: str, *, as_json: bool) -> None:
    """Show what OWNER_ID has, and the last entries of the account."""
    found = asdict(accounts.balance(house(), owner_id))
    entries = accounts.statement(house(), owner_id)
    if as_json:
        _print_json(found | {"entries": entries})
        return
    _show_balance(owner_id, found, as_json=False)
    table = Table("no.", "at", "kind", "credits", "job", box=None)
    for entry in entries:
        table.add_row(
            str(entry["seq"]),
            entry["created_at"][:19],
            entry["kind"],
            str(entry["amount"]),
            entry["training_id"],
        )
    out.print(table)


@imprint.command()
@_answers
def audit(*, as_json: bool) -> None:
    """Check every rule of the ledger; exit code 1 if anything is off."""
    findings = sweeps.check_books(house())
    if as_json:
        _print_json({"ok": not findings, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            out.print(f"[red]{finding}[/]")
        out.print("the books are in order" if not findings else f"{len(findings)} finding(s)")
    sys.exit(1 if findings else 0)


def _relay() -> None:
    """Send what was written. Where no broker answers, say so: it is kept, and the sweep of the next stack sends it."""
    from kombu.exceptions import OperationalError

    from tasks.app import app
    from tasks.relay import relay

    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1)
    except OperationalError:
        err.print("[yellow]No broker answers: this is kept, and goes on once a stack runs[/] (make up)")
        return
    relay(house())


def _show_balance(owner_id: str, found: dict[str, int], as_json: bool) -> None:
    if as_json:
        _print_json({"owner_id": owner_id} | found)
    else:
        out.print(
            f"{owner_id}: [bold]{found['available']}[/] available, {found['held']} held, "
            f"{found['spent']} spent of {found['granted']} granted", highlight=False,
        )  # fmt: skip


def _coloured(view: View) -> str:
    colour = {"ready": "green", "failed": "red", "cancelled": "yellow"}.get(view["status"], "cyan")
    return f"[{colour}]{view['status']}[/]"


def _show(view: View, as_json: bool) -> None:
    if as_json:
        _print_json(view)
        return
    out.print(
        f"{view['job_id']}  {_coloured(view)}  stage {view['stage']}  step {view['step']}/{view['total_steps']}  "
        f"held {view['credits']['held']}  charged {view['credits']['charged']}", highlight=False,
    )  # fmt: skip
    for picture in view["pictures"]:
        if picture["faults"]:
            why = (picture["report"] or {}).get("error", "")
            out.print(
                f"  picture {picture['position']}: [yellow]{', '.join(picture['faults'])}[/] {why}",
                highlight=False,
            )
    if view["failure"]:
        out.print(f"  [red]{view['failure']['code']}[/]: {view['failure']['message']}", highlight=False)
    if view["lora"]:
        out.print(
            f"  LoRA {view['lora']['key']}  {view['lora']['bytes']} bytes  sha256 {view['lora']['sha256']}",
            highlight=False,
        )
