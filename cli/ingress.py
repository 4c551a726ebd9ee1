"""`imprint ingress`: `model_training` messages from RabbitMQ."""

import logging

import click

from cli.terminal import answers, out, print_json
from jobs.services import services
from tasks.ingress_queue import Ingress, lengths, replay


@click.group(invoke_without_command=True)
@click.pass_context
@answers
def ingress(context: click.Context, *, as_json: bool) -> None:
    """Make trainings of the messages on RabbitMQ's queue model_training, until Ctrl-C or SIGTERM."""
    if context.invoked_subcommand is None:
        logging.basicConfig(level=services().settings.log_level, format="%(asctime)s %(levelname)s %(message)s")
        Ingress(services()).serve()


@ingress.command()
@answers
def status(*, as_json: bool) -> None:
    """Show how many messages wait, and how many were refused and are dead letters."""
    found = lengths(services())
    if as_json:
        print_json(found)
    else:
        out.print(f"{found['waiting']} waiting, {found['dead']} dead letters, {found['consumers']} consumer(s)")


@ingress.command(name="replay")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
@click.option("--reason", metavar="CODE", help="Only those refused for this: malformed, insufficient_credits …")
@answers
def replay_dead(*, limit: int | None, reason: str | None, as_json: bool) -> None:
    """Put dead letters back into the queue, oldest first."""
    done = replay(services(), limit, reason)
    if as_json:
        print_json(done)
    else:
        out.print(f"{done['replayed']} message(s) are in the queue again, {done['kept']} stay")
