"""`imprint approvals`: the jobs that wait for an operator's approval."""

import click
from rich.markup import escape
from rich.table import Table

from cli.output.terminal import answers, out, print_json
from jobs.admission import approvals as held_jobs
from jobs.services import services


@click.group(invoke_without_command=True)
@click.pass_context
@answers
def approvals(context: click.Context, *, as_json: bool) -> None:
    """List, accept or refuse the jobs that wait for an approval."""
    if context.invoked_subcommand is not None:
        return
    found = held_jobs.list_held(services())
    if as_json:
        print_json([one.to_dict() for one in found])
        return
    table = Table("job", "owner", "credits", "since", "expires", "reason", box=None)
    for one in found:
        since, expires = f"{one.since:%Y-%m-%d %H:%M}", f"{one.expires_at:%Y-%m-%d %H:%M}"
        table.add_row(one.job_id, escape(one.owner_id), str(one.credits), since, expires, escape(one.reason))
    out.print(table if found else "no job waits for an approval")


@approvals.command()
@click.argument("job_id")
@answers
def accept(job_id: str, *, as_json: bool) -> None:
    """Let JOB_ID wait for its turn like any other job."""
    held_jobs.approve(services(), job_id)
    print_json({"accepted": job_id}) if as_json else out.print(f"{job_id} is accepted", highlight=False)


@approvals.command()
@click.argument("job_id")
@click.option("--reason", default="", help="For the owner.")
@answers
def refuse(job_id: str, *, reason: str, as_json: bool) -> None:
    """Refuse JOB_ID: it fails, and its owner gets the credits back."""
    held_jobs.refuse(services(), job_id, reason)
    print_json({"refused": job_id}) if as_json else out.print(f"{job_id} is refused", highlight=False)
