"""Commands on what owners may use: their limits, their weight, and the audit log."""

import click
from rich.table import Table

from cli.operations.owners import OWNER
from cli.output.terminal import answers, out, print_json
from jobs.admission import shares
from jobs.owners import audit_log
from jobs.owners import limits as job_limits
from jobs.services import services


@click.command(name="limits")
@click.argument("owner_id", type=OWNER)
@answers
def list_limits(owner_id: str, *, as_json: bool) -> None:
    """Show the limits of OWNER_ID, and what is used of each."""
    found = job_limits.list_limits(services(), owner_id)
    if as_json:
        print_json([view.to_dict() for view in found])
        return
    table = Table("limit", "at most", "used", "frees at", box=None)
    for view in found:
        frees_at = f"{view.frees_at:%Y-%m-%d %H:%M} UTC" if view.frees_at else ""
        table.add_row(view.name, "" if view.value is None else str(view.value), str(view.used), frees_at)
    out.print(table)


@click.command()
@click.argument("name", type=click.Choice(job_limits.NAMES))
@click.argument("value")
@click.option("--owner", "owner_id", type=OWNER, help="The owner that it limits.")
@click.option("--token", "token_id", help="The token that it limits.")
@answers
def limit(name: str, value: str, *, owner_id: str | None, token_id: str | None, as_json: bool) -> None:
    """Limit an owner or a token to VALUE, a number; `default` is the setting again."""
    if value != "default" and not value.isdecimal():
        raise click.UsageError("VALUE must be a whole number, or default")
    number = None if value == "default" else int(value)
    job_limits.change(services(), name, number, owner_id=owner_id, token_id=token_id)
    changed = {"owner_id": owner_id, "token_id": token_id, "name": name, "value": number}
    print_json(changed) if as_json else out.print(f"{owner_id or token_id}: {name} {value}", highlight=False)


@click.command()
@click.argument("owner_id", type=OWNER)
@click.argument("value", type=float)
@answers
def weight(owner_id: str, value: float, *, as_json: bool) -> None:
    """Give OWNER_ID a weight: with 2, twice as much training time as owners with 1, the default."""
    shares.set_weight(services(), owner_id, value)
    print_json({"owner_id": owner_id, "weight": value}) if as_json else out.print(f"{owner_id}: weight {value:g}")


@click.command(name="log")
@click.option("--owner", "owner_id", type=OWNER, help="Only about this owner.")
@click.option("--job", "job_id", help="Only about this job.")
@click.option("--action", help="Only this action, such as job.cancelled.")
@click.option("--limit", default=50, show_default=True, help="How many entries.")
@answers
def audit_entries(owner_id: str | None, *, job_id: str | None, action: str | None, limit: int, as_json: bool) -> None:
    """Show who did what to jobs, owners, credits and limits, newest first."""
    found = audit_log.list_entries(services(), owner_id=owner_id, job_id=job_id, action=action, limit=limit)
    if as_json:
        print_json([view.to_dict() for view in found])
        return
    table = Table("at", "who", "action", "owner", "job", "more", box=None)
    for view in found:
        more = "  ".join(f"{name} {value}" for name, value in view.data.items() if value is not None)
        who = f"{view.actor} {view.actor_id}".strip()
        table.add_row(f"{view.at:%Y-%m-%d %H:%M:%S}", who, view.action, view.owner_id or "", view.job_id or "", more)
    out.print(table)


LIMITS: tuple[click.Command, ...] = (list_limits, limit, weight, audit_entries)
