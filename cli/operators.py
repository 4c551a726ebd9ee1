"""What only operators type: owners' credits and the books; notices that were given up, and who wants none."""

import sys
from dataclasses import asdict
from typing import Any

import click
from rich.table import Table

from cli.terminal import answers, err, out, print_json
from jobs import accounts, sweeps
from jobs.notices import dead_letters
from jobs.services import services

# ---- credits --------------------------------------------------------------------------------------------------


@click.command()
@click.argument("owner_id")
@click.argument("amount", metavar="CREDITS", type=int)
@click.option("--key", help="The same key grants once.")
@answers
def grant(owner_id: str, amount: int, *, key: str | None, as_json: bool) -> None:
    """Give OWNER_ID a number of CREDITS."""
    _show_balance(owner_id, asdict(accounts.grant(services(), owner_id, amount, key)), as_json)


@click.command()
@click.argument("owner_id")
@answers
def balance(owner_id: str, *, as_json: bool) -> None:
    """Show what OWNER_ID has, and the last entries of the account."""
    found = asdict(accounts.balance(services(), owner_id))
    entries = accounts.statement(services(), owner_id)
    if as_json:
        print_json(found | {"entries": entries})
        return
    _show_balance(owner_id, found, as_json=False)
    table = Table("no.", "at", "kind", "credits", "job", box=None)
    for entry in entries:
        at = entry["created_at"][:19]
        table.add_row(str(entry["seq"]), at, entry["kind"], str(entry["amount"]), entry["training_id"])
    out.print(table)


@click.command()
@click.argument("job_id")
@click.argument("amount", metavar="CREDITS", type=int)
@click.option("--key", help="The same key refunds once.")
@answers
def refund(job_id: str, amount: int, *, key: str | None, as_json: bool) -> None:
    """Give back CREDITS that JOB_ID was charged, all together no more than that."""
    owner_id, found = accounts.refund(services(), job_id, amount, key)
    _show_balance(owner_id, asdict(found), as_json)


@click.command()
@answers
def audit(*, as_json: bool) -> None:
    """Check every rule of the ledger and of the jobs; exit code 1 if anything is off. Leaks are shown beside."""
    findings, leaks = sweeps.check_books(services()), sweeps.leaks(services())
    lost = sum(leak.credits for leak in leaks)
    if as_json:
        told = [asdict(leak) | {"at": leak.at.isoformat()} for leak in leaks]
        print_json(
            {
                "ok": not findings,
                "findings": [asdict(finding) for finding in findings],
                "leaks": {"count": len(leaks), "credits": lost, "jobs": told[:100]},
            }
        )
    else:
        for finding in findings:
            out.print(f"[red]{finding}[/]", highlight=False)
        out.print("the books are in order" if not findings else f"{len(findings)} finding(s)")
        for leak in leaks[:20]:
            out.print(f"[yellow]leak[/]: {leak.job_id} of {leak.owner_id}, {leak.credits} credits", highlight=False)
        if leaks:
            out.print(f"{len(leaks)} training(s) were delivered after their hold was over: {lost} credits not charged")
    sys.exit(1 if findings else 0)


def _show_balance(owner_id: str, found: dict[str, int], as_json: bool) -> None:
    if as_json:
        print_json({"owner_id": owner_id} | found)
    else:
        out.print(
            f"{owner_id}: [bold]{found['available']}[/] available, {found['held']} held, "
            f"{found['spent']} spent of {found['granted']} granted", highlight=False,
        )  # fmt: skip


# ---- notices --------------------------------------------------------------------------------------------------


@click.command(name="letters")
@click.option("--limit", default=100, show_default=True)
@answers
def list_dead_letters(*, limit: int, as_json: bool) -> None:
    """List notices that were given up, the newest first."""
    found = dead_letters.dead(services(), limit)
    _show_rows(found, ("id", "job_id", "receiver", "event", "reason", "at"), "no notice was given up", as_json)


@click.command()
@click.argument("message_id", required=False)
@click.option("--all", "everything", is_flag=True, help="All that were given up.")
@click.option("--job", "job_id", help="Those of one job that were given up.")
@click.option("--receiver", metavar="URL", help="Those to one receiver that were given up; scheme and host will do.")
@answers
def redeliver(
    message_id: str | None, *, everything: bool, job_id: str | None, receiver: str | None, as_json: bool
) -> None:
    """Send notices once more, from their first attempt on: MESSAGE_ID, or those that were given up."""
    if sum(map(bool, (message_id, everything, job_id, receiver))) != 1:
        raise click.UsageError("name one of MESSAGE_ID, --all, --job and --receiver")
    if message_id is not None:
        done = dead_letters.redeliver(services(), message_id)
    else:
        done = dead_letters.redeliver_dead(services(), job_id=job_id, receiver=receiver)
    if as_json:
        print_json(asdict(done))
        return
    out.print(f"{len(done.again)} notice(s) are on their way again", highlight=False)
    if done.disabled:
        err.print(f"{done.disabled} stay, since their receiver is disabled: imprint receivers", highlight=False)
    if done.needless:
        err.print(f"{done.needless} stay, since a later notice of their job has said more", highlight=False)


@click.group(invoke_without_command=True)
@click.pass_context
@answers
def receivers(context: click.Context, *, as_json: bool) -> None:
    """List receivers that get no more notices, since they answered 410; or enable one again."""
    if context.invoked_subcommand is None:
        found = dead_letters.disabled_receivers(services())
        _show_rows(found, ("owner_id", "receiver", "reason", "at"), "no receiver is disabled", as_json)


@receivers.command()
@click.argument("owner_id")
@click.argument("url")
@answers
def enable(owner_id: str, url: str, *, as_json: bool) -> None:
    """Let the receiver of OWNER_ID at URL (scheme and host will do) get notices again."""
    count = dead_letters.enable_receiver(services(), owner_id, url)
    if as_json:
        print_json({"enabled": count})
    else:
        out.print(f"{count} receiver(s) enabled; what was given up meanwhile: imprint redeliver --receiver URL")


def _show_rows(rows: list[dict[str, Any]], columns: tuple[str, ...], nothing: str, as_json: bool) -> None:
    if as_json:
        print_json(rows)
    elif not rows:
        out.print(nothing)
    else:
        table = Table(*columns, box=None)
        for row in rows:
            table.add_row(*(str(row[name])[:19] if name == "at" else str(row[name]) for name in columns))
        out.print(table)


OPERATORS: tuple[click.Command, ...] = (
    grant, balance, refund, audit, list_dead_letters, redeliver, receivers,
)  # fmt: skip
