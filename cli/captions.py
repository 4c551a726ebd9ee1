"""Captions of a subject's pictures and of trainings that wait for their review: `imprint captions …`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import click
from rich.table import Table

from cli.operations.owners import OWNER
from cli.output.show import show
from cli.output.terminal import answers, out, print_json
from jobs.captioning import review
from jobs.requests.envelope import subject_name
from jobs.services import services
from jobs.subjects import captions as subject_captions
from jobs.subjects.captions import Caption, CaptionsChanged


@click.group()
def captions() -> None:
    """List and change the captions of a subject's pictures."""


def _of_subject(command: Callable[..., Any]) -> Callable[..., Any]:
    owner = click.option(
        "--owner", "owner_id", type=OWNER, default="me", show_default=True, help="Whose subject it is."
    )
    return click.argument("subject_id")(owner(command))


_PICTURES = click.option("--picture", "ids", multiple=True, metavar="ID", help="Only this picture; may be repeated.")


@captions.command(name="list")
@_of_subject
@answers
def list_captions(subject_id: str, *, owner_id: str, as_json: bool) -> None:
    """List the pictures of SUBJECT_ID with their captions."""
    _show(subject_captions.list_captions(services(), owner_id, subject_name(subject_id)), as_json)


@captions.command(name="set")
@_of_subject
@click.argument("picture_id")
@click.argument("text")
@answers
def set_caption(subject_id: str, picture_id: str, text: str, *, owner_id: str, as_json: bool) -> None:
    """Set the caption of a picture of SUBJECT_ID; an empty TEXT removes it."""
    _done(subject_captions.set_all(services(), owner_id, subject_name(subject_id), {picture_id: text}), as_json)


@captions.command()
@_of_subject
@click.argument("find")
@click.argument("replacement")
@_PICTURES
@answers
def replace(subject_id: str, find: str, replacement: str, *, owner_id: str, ids: Sequence[str], as_json: bool) -> None:
    """Replace the text FIND in the captions of SUBJECT_ID."""
    name = subject_name(subject_id)
    _done(subject_captions.replace(services(), owner_id, name, find, replacement, ids or None), as_json)


@captions.command()
@_of_subject
@click.argument("text")
@_PICTURES
@answers
def prepend(subject_id: str, text: str, *, owner_id: str, ids: Sequence[str], as_json: bool) -> None:
    """Put TEXT in front of the captions of SUBJECT_ID, as it is: with its comma and space."""
    _done(subject_captions.prepend(services(), owner_id, subject_name(subject_id), text, ids or None), as_json)


@captions.command()
@_of_subject
@answers
def undo(subject_id: str, *, owner_id: str, as_json: bool) -> None:
    """Take back the last change of the captions of SUBJECT_ID; repeat it for the one before."""
    _done(subject_captions.undo(services(), owner_id, subject_name(subject_id)), as_json)


@captions.command(name="review")
@click.argument("job_id")
@answers
def review_captions(job_id: str, *, as_json: bool) -> None:
    """Show the captions that the job JOB_ID waits with, until they are accepted."""
    found = review.get(services(), job_id)
    if as_json:
        print_json(found.to_dict())
        return
    out.print(
        f"{job_id} waits until {found.until:%Y-%m-%d %H:%M}; accept with: imprint captions accept {job_id}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("number", "picture", "file", "caption", box=None)
    for one in found.captions:
        table.add_row(str(one.position + 1), one.picture_id or "", one.name or "", one.caption or "")
    out.print(table, markup=False)


@captions.command()
@click.argument("job_id")
@answers
def accept(job_id: str, *, as_json: bool) -> None:
    """Train the job JOB_ID with the captions as they are now."""
    show(review.accept(services(), job_id), as_json)


def _done(done: CaptionsChanged, as_json: bool) -> None:
    if not as_json:
        count = len(done.changed)
        out.print(f"{count} caption{'s' * (count != 1)} changed", highlight=False)
    _show(done.changed, as_json)


def _show(found: Sequence[Caption], as_json: bool) -> None:
    if as_json:
        print_json([asdict(one) for one in found])
        return
    table = Table("picture", "file", "caption", box=None)
    for one in found:
        table.add_row(one.picture_id, one.name or "", one.caption or "")
    if found:
        out.print(table, markup=False)
