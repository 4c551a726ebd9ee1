"""`imprint sessions`: who is signed in on the page."""

import click
from rich.markup import escape
from rich.table import Table

from cli.operations.owners import OWNER
from cli.output.terminal import answers, out, print_json
from jobs.owners import sessions as kept
from jobs.services import services


@click.group(invoke_without_command=True)
@click.option("--owner", "owner_id", type=OWNER, help="Only sessions that act for this owner.")
@click.pass_context
@answers
def sessions(context: click.Context, *, owner_id: str | None, as_json: bool) -> None:
    """List or end sessions of the page."""
    if context.invoked_subcommand is not None:
        return
    found = kept.list_sessions(services(), owner_id)
    if as_json:
        print_json([one.to_dict() for one in found])
    elif not found:
        out.print("no session is open")
    else:
        table = Table("session", "owner", "token", "since", "until", "browser", box=None)
        for one in found:
            token = f"{one.token_id} {escape(one.token_name)}"
            since, until = (f"{at:%Y-%m-%d %H:%M}" for at in (one.created_at, one.expires_at))
            table.add_row(one.id, escape(one.owner_id or "(operator)"), token, since, until, escape(one.browser))
        out.print(table)


@sessions.command()
@click.argument("session_id", required=False)
@click.option("--owner", "owner_id", type=OWNER, help="All sessions that act for this owner.")
@click.option("--all", "everything", is_flag=True, help="All sessions.")
@answers
def end(session_id: str | None, *, owner_id: str | None, everything: bool, as_json: bool) -> None:
    """End SESSION_ID, or several sessions: their next request is refused, and their event streams end.

    To end all sessions of a token, revoke the token.
    """
    if sum(map(bool, (session_id, owner_id, everything))) != 1:
        raise click.UsageError("give exactly one of SESSION_ID, --owner and --all")
    if session_id is not None:
        kept.end(services(), session_id)
        count = 1
    else:
        count = kept.end_all(services(), owner_id)
    print_json({"ended": count}) if as_json else out.print(f"{count} session(s) ended")
