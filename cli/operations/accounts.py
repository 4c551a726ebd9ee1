"""Commands for operators: credits and the ledger; undelivered notices and disabled receivers."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

import click
from rich.table import Table

from cli.operations.owners import OWNER
from cli.output.terminal import answers, err, out, print_json
from jobs.lifecycle import sweeps
from jobs.notices import dead_letters
from jobs.owners import accounts
from jobs.services import services
from jobs.view import View

# ---- credits --------------------------------------------------------------------------------------------------


@click.command()
@click.argument("owner_id", type=OWNER)
@click.argument("amount", metavar="CREDITS", type=int)
@click.option("--key", help="Idempotency key: the same key grants once.")
@answers
def grant(owner_id: str, amount: int, *, key: str | None, as_json: bool) -> None:
    """Grant CREDITS to OWNER_ID."""
    _show_balance(owner_id, asdict(accounts.grant(services(), owner_id, amount, key)), as_json)


@click.command()
@click.argument("owner_id", type=OWNER)
@answers
def balance(owner_id: str, *, as_json: bool) -> None:
    """Show the balance of OWNER_ID and the latest entries."""
    found = asdict(accounts.balance(services(), owner_id))
    entries = accounts.statement(services(), owner_id)
    if as_json:
        print_json(found | {"entries": [entry.to_dict() for entry in entries]})
        return
    _show_balance(owner_id, found, as_json=False)
    table = Table("no.", "at", "kind", "credits", "job", box=None)
    for entry in entries:
        at = entry.created_at.isoformat()[:19]
        table.add_row(str(entry.seq), at, entry.kind, str(entry.amount), entry.training_id)
    out.print(table)


@click.command()
@click.argument("job_id")
@click.argument("amount", metavar="CREDITS", type=int)
@click.option("--key", help="Idempotency key: the same key refunds once.")
@answers
def refund(job_id: str, amount: int, *, key: str | None, as_json: bool) -> None:
    """Refund CREDITS of JOB_ID, at most what it was charged."""
    owner_id, found = accounts.refund(services(), job_id, amount, key)
    _show_balance(owner_id, asdict(found), as_json)


@click.command()
@answers
def audit(*, as_json: bool) -> None:
    """Check the rules of ledger and jobs. Exit code 1 if one is broken.

    Leaks, which are LoRAs that were delivered but not charged, are listed but do not change the exit code.
    """
    findings, leaks = sweeps.run_audit(services()), sweeps.leaks(services())
    lost = sum(leak.credits for leak in leaks)
    if as_json:
        rows = [asdict(leak) | {"at": leak.at.isoformat()} for leak in leaks]
        print_json(
            {
                "ok": not findings,
                "findings": [asdict(finding) for finding in findings],
                "leaks": {"count": len(leaks), "credits": lost, "jobs": rows[:100]},
            }
        )
    else:
        for finding in findings:
            out.print(f"[red]{finding}[/]", highlight=False)
        out.print("the ledger is consistent" if not findings else f"{len(findings)} finding(s)")
        for leak in leaks[:20]:
            out.print(f"[yellow]leak[/]: {leak.job_id} of {leak.owner_id}, {leak.credits} credits", highlight=False)
        if leaks:
            out.print(f"{len(leaks)} training(s) were delivered after their hold expired: {lost} credits not charged")
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
@click.option("--limit", default=100, show_default=True, help="How many notices to list.")
@answers
def list_dead_letters(*, limit: int, as_json: bool) -> None:
    """List undelivered notices, newest first."""
    found = dead_letters.list_dead_letters(services(), limit)
    _show_rows(found, ("id", "job_id", "receiver", "event", "reason", "at"), "no notice was given up", as_json)


@click.command()
@click.argument("message_id", required=False)
@click.option("--all", "everything", is_flag=True, help="All undelivered notices.")
@click.option("--job", "job_id", help="The undelivered notices of one job.")
@click.option("--receiver", metavar="URL", help="The undelivered notices to one receiver; scheme and host are enough.")
@answers
def redeliver(
    message_id: str | None, *, everything: bool, job_id: str | None, receiver: str | None, as_json: bool
) -> None:
    """Send undelivered notices again, or the one with MESSAGE_ID."""
    if sum(map(bool, (message_id, everything, job_id, receiver))) != 1:
        raise click.UsageError("give exactly one of MESSAGE_ID, --all, --job and --receiver")
    if message_id is not None:
        done = dead_letters.redeliver(services(), message_id)
    else:
        done = dead_letters.redeliver_dead(services(), job_id=job_id, receiver=receiver)
    if as_json:
        print_json(asdict(done))
        return
    out.print(f"{len(done.again)} notice(s) are on their way again", highlight=False)
    if done.disabled:
        err.print(
            f"{done.disabled} not sent, because the receiver is disabled (see: imprint receivers)", highlight=False
        )
    if done.needless:
        err.print(f"{done.needless} not sent, because a later notice of the job was delivered", highlight=False)


@click.group(invoke_without_command=True)
@click.pass_context
@answers
def receivers(context: click.Context, *, as_json: bool) -> None:
    """List or enable receivers that were disabled after a 410."""
    if context.invoked_subcommand is None:
        found = dead_letters.disabled_receivers(services())
        _show_rows(found, ("owner_id", "receiver", "reason", "at"), "no receiver is disabled", as_json)


@receivers.command()
@click.argument("owner_id", type=OWNER)
@click.argument("url")
@answers
def enable(owner_id: str, url: str, *, as_json: bool) -> None:
    """Enable the receiver of OWNER_ID at URL. Scheme and host are enough."""
    count = dead_letters.enable_receiver(services(), owner_id, url)
    if as_json:
        print_json({"enabled": count})
    else:
        out.print(f"{count} receiver(s) enabled. Send undelivered notices with: imprint redeliver --receiver URL")


def _show_rows(views: Sequence[View], columns: tuple[str, ...], nothing: str, as_json: bool) -> None:
    rows = [view.to_dict() for view in views]
    if as_json:
        print_json(rows)
    elif not rows:
        out.print(nothing)
    else:
        table = Table(*columns, box=None)
        for row in rows:
            table.add_row(*(str(row[name])[:19] if name == "at" else str(row[name]) for name in columns))
        out.print(table)


CREDITS: tuple[click.Command, ...] = (grant, balance, refund, audit)
NOTICES: tuple[click.Command, ...] = (list_dead_letters, redeliver, receivers)
