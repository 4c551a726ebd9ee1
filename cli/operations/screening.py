"""`imprint screening`: the pictures that the screener holds for a person."""

import click
from rich.markup import escape
from rich.table import Table

from cli.output.terminal import answers, out, print_json
from jobs import screening as held_pictures
from jobs.services import services


@click.group(invoke_without_command=True)
@click.pass_context
@answers
def screening(context: click.Context, *, as_json: bool) -> None:
    """List, accept or refuse the pictures that wait for a person's decision."""
    if context.invoked_subcommand is not None:
        return
    found = held_pictures.list_held(services())
    if as_json:
        print_json([one.to_dict() for one in found])
    elif not found:
        out.print("no picture waits for a decision")
    else:
        table = Table("picture", "owner", "subject", "since", "reason", box=None)
        for one in found:
            at = f"{one.since:%Y-%m-%d %H:%M}"
            table.add_row(one.sha256, escape(one.owner_id), escape(one.subject_id), at, escape(one.reason or ""))
        out.print(table)


@screening.command()
@click.argument("sha256")
@answers
def accept(sha256: str, *, as_json: bool) -> None:
    """Let trainings use a held picture."""
    held_pictures.decide(services(), sha256, accept=True)
    print_json({"accepted": sha256}) if as_json else out.print(f"{sha256} is accepted", highlight=False)


@screening.command()
@click.argument("sha256")
@click.option("--reason", help="For the owner of the training.")
@answers
def refuse(sha256: str, *, reason: str | None, as_json: bool) -> None:
    """Refuse a held picture: no training uses it."""
    held_pictures.decide(services(), sha256, accept=False, reason=reason)
    print_json({"refused": sha256}) if as_json else out.print(f"{sha256} is refused", highlight=False)
