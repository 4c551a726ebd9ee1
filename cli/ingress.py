"""`imprint ingress`: start trainings from `model_training` messages on RabbitMQ."""

import click

from cli.terminal import answers, out, print_json
from core.logging import set_up
from core.private import keep_private
from jobs.services import services
from tasks.ingress_queue import Ingress, lengths, replay


@click.group(invoke_without_command=True)
@click.pass_context
@answers
def ingress(context: click.Context, *, as_json: bool) -> None:
    """Start trainings from messages on RabbitMQ.

    The queue is model_training. The command runs until Ctrl-C or SIGTERM.
    """
    if context.invoked_subcommand is None:
        configured = services().settings
        keep_private(configured.home)
        set_up(configured.log_dir, configured.log_level, configured.log_format)
        Ingress(services()).serve()


@ingress.command()
@answers
def status(*, as_json: bool) -> None:
    """Count waiting messages and dead letters."""
    found = lengths(services())
    if as_json:
        print_json(found)
    else:
        out.print(f"{found['waiting']} waiting, {found['dead']} dead letters, {found['consumers']} consumer(s)")


@ingress.command(name="replay")
@click.option("--limit", type=click.IntRange(min=1), help="The most messages to replay.")
@click.option(
    "--reason", metavar="CODE", help="Only messages refused for this reason: malformed, insufficient_credits …"
)
@answers
def replay_dead(*, limit: int | None, reason: str | None, as_json: bool) -> None:
    """Put dead letters back into the queue, oldest first."""
    done = replay(services(), limit, reason)
    if as_json:
        print_json(done)
    else:
        out.print(f"{done['replayed']} message(s) are in the queue again, {done['kept']} stay")
