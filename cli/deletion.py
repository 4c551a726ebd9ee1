"""`imprint delete`: pictures, subjects, trainings and owners, and how far their deletion is."""

from collections.abc import Callable
from typing import Any

import click
from rich.table import Table

from cli.operations.owners import OWNER
from cli.output.terminal import answers, out, print_json
from jobs.deletion import requests
from jobs.deletion.requests import DeletionView
from jobs.requests.envelope import subject_name
from jobs.services import services


@click.group()
def delete() -> None:
    """Delete pictures, subjects, trainings or owners."""


def _yes(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--yes", is_flag=True, help="Do not ask.")(command)


def _confirm(question: str, yes: bool) -> None:
    if not yes:
        click.confirm(question, abort=True, err=True)


def _show(view: DeletionView, as_json: bool) -> None:
    if as_json:
        print_json(view.to_dict())
        return
    text = {
        "waiting": f"begins at {view.due_at:%Y-%m-%d %H:%M} UTC; undo it with: imprint delete undo {view.id}",
        "running": f"is under way{f': {view.note}' if view.note else ''}",
        "done": "is done",
    }[view.status]
    out.print(f"deletion {view.id} of the {view.kind.value} {text}", highlight=False, markup=False, soft_wrap=True)


@delete.command()
@click.argument("picture_id")
@_yes
@answers
def picture(picture_id: str, *, yes: bool, as_json: bool) -> None:
    """Delete a stored picture, once no active training uses it."""
    _confirm(f"Delete the picture {picture_id}?", yes)
    _show(requests.delete_picture(services(), picture_id), as_json)


@delete.command()
@click.argument("owner_id", type=OWNER)
@click.argument("subject_id")
@_yes
@answers
def subject(owner_id: str, subject_id: str, *, yes: bool, as_json: bool) -> None:
    """Delete a subject with its pictures, trainings, LoRA files and settings."""
    subject_id = subject_name(subject_id)
    _confirm(f"Delete the subject {subject_id} of {owner_id} with its pictures, trainings and LoRA files?", yes)
    _show(requests.delete_subject(services(), owner_id, subject_id), as_json)


@delete.command()
@click.argument("job_id")
@_yes
@answers
def training(job_id: str, *, yes: bool, as_json: bool) -> None:
    """Delete a training with its files. An active one is cancelled first."""
    _confirm(f"Delete the training {job_id} with its LoRA file?", yes)
    _show(requests.delete_training(services(), job_id), as_json)


@delete.command()
@click.argument("owner_id", type=OWNER)
@_yes
@answers
def owner(owner_id: str, *, yes: bool, as_json: bool) -> None:
    """Delete an owner with all subjects, tokens and settings. Ledger entries stay under a pseudonym."""
    _confirm(f"Delete the owner {owner_id} with everything that belongs to {owner_id}?", yes)
    _show(requests.delete_owner(services(), owner_id), as_json)


@delete.command()
@click.argument("deletion_id", required=False)
@answers
def status(deletion_id: str | None, *, as_json: bool) -> None:
    """Show how far a deletion is, or list all that are not done."""
    if deletion_id is not None:
        _show(requests.get(services(), deletion_id), as_json)
        return
    found = requests.list_open(services())
    if as_json:
        print_json([view.to_dict() for view in found])
    elif not found:
        out.print("every deletion is done")
    else:
        table = Table("deletion", "of", "owner", "subject", "status", "waits for", box=None)
        for view in found:
            table.add_row(view.id, view.kind.value, view.owner_id, view.subject_id, view.status, view.note)
        out.print(table, markup=False)


@delete.command()
@click.argument("deletion_id")
@answers
def undo(deletion_id: str, *, as_json: bool) -> None:
    """Undo a deletion that has not begun."""
    requests.undo(services(), deletion_id)
    print_json({"undone": deletion_id}) if as_json else out.print(f"{deletion_id} is undone", highlight=False)
