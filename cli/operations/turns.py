"""Commands on whose turn it is: pauses, workers, and the weights and limits of owners."""

import click
from rich.table import Table

from cli.output.terminal import answers, out, print_json
from jobs.admission import pauses, workers
from jobs.services import services


@click.command()
@click.argument("scope", default="all")
@click.option("--reason", default="", help="Shown to operators.")
@answers
def pause(scope: str, *, reason: str, as_json: bool) -> None:
    """Let no job of SCOPE start: all, queue:NAME or family:NAME.

    Trainings that run continue, and nothing that was accepted is lost.
    """
    view = pauses.pause(services(), scope, reason)
    print_json(view.to_dict()) if as_json else out.print(f"{view.scope} is paused", highlight=False)


@click.command()
@click.argument("scope", default="all")
@answers
def resume(scope: str, *, as_json: bool) -> None:
    """End the pause of SCOPE."""
    pauses.resume(services(), scope)
    print_json({"resumed": scope}) if as_json else out.print(f"{scope} continues", highlight=False)


@click.command(name="pauses")
@answers
def list_pauses(*, as_json: bool) -> None:
    """List what is paused."""
    found = pauses.list_pauses(services())
    if as_json:
        print_json([view.to_dict() for view in found])
        return
    table = Table("paused", "since", "reason", box=None)
    for view in found:
        table.add_row(view.scope, f"{view.paused_at:%Y-%m-%d %H:%M}", view.reason)
    out.print(table if found else "nothing is paused")


@click.command(name="workers")
@answers
def list_workers(*, as_json: bool) -> None:
    """List the training workers that report, with their slots, devices and base models."""
    found = workers.list_workers(services())
    if as_json:
        print_json([view.to_dict() for view in found])
        return
    table = Table("worker", "slots", "device", "queues", "base models", "state", box=None)
    for view in found:
        state = "draining" if view.draining else "alive" if view.alive else "does not report"
        table.add_row(view.worker, str(view.slots), view.device, " ".join(view.queues), " ".join(view.bases), state)
    out.print(table if found else "no training worker reports")


@click.command()
@click.argument("worker")
@click.option("--undo", is_flag=True, help="Let it take jobs again.")
@answers
def drain(worker: str, *, undo: bool, as_json: bool) -> None:
    """Have WORKER finish its trainings and take no further one."""
    view = workers.drain(services(), worker, not undo)
    if as_json:
        print_json(view.to_dict())
    else:
        out.print(f"{view.worker} {'takes jobs again' if undo else 'takes no further job'}", highlight=False)


TURNS: tuple[click.Command, ...] = (pause, resume, list_pauses, list_workers, drain)
