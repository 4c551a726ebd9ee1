"""The type of an owner's name in commands; `imprint owners`: names that no request can use."""

from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from cli.output.terminal import answers, out, print_json
from core.names import owner_name
from jobs.owners import unusable_names as named
from jobs.services import services


class _Owner(click.ParamType[str]):
    """An owner's name, in the spelling that is stored."""

    name = "owner"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return owner_name(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


OWNER = _Owner()


@click.group(invoke_without_command=True)
@click.pass_context
@answers
def owners(context: click.Context, *, as_json: bool) -> None:
    """List or rename owners whose names no request can use.

    Earlier versions accepted them. The update to this version renamed an owner wherever that was possible without
    merging two accounts.
    """
    if context.invoked_subcommand is not None:
        return
    found = named.list_odd(services())
    if as_json:
        print_json([odd.to_dict() for odd in found])
    elif not found:
        out.print("every owner has a name that requests can use")
    else:
        table = Table("owner", "available", "held", "what is wrong", box=None)
        for odd in found:
            table.add_row(escape(ascii(odd.owner_id)), str(odd.available), str(odd.held), escape(odd.reason))
        out.print(table)


@owners.command()
@click.argument("old")
@click.argument("new")
@answers
def rename(old: str, new: str, *, as_json: bool) -> None:
    """Give all that belongs to OLD to NEW, an owner who does not exist yet.

    Write OLD as `imprint owners` prints it between the quotation marks; \\x and \\u escapes are understood.
    """
    if "\\" in old:
        try:
            old = old.encode("ascii").decode("unicode_escape")
        except UnicodeError:
            raise click.BadParameter("has an escape that is not one", param_hint="OLD") from None
    name = named.rename(services(), old, new)
    print_json({"owner_id": name}) if as_json else out.print(f"{old!a} is now {name}", markup=False)
