"""`imprint ingress`: start trainings from `model_training` messages on RabbitMQ."""

import click

from cli.output.terminal import answers, out, print_json
from core.private import keep_private
from core.telemetry import logging
from jobs.services import services
from tasks.rabbitmq.ingress_queue import Ingress, lengths, replay


@click.group(invoke_without_command=True)
@click.pass_context
@answers
def ingress(context: click.Context, *, as_json: bool) -> None:
    """Start trainings from messages on RabbitMQ.

    The command runs until Ctrl-C or SIGTERM. IMPRINT_INGRESS_QUEUE names the queue.
    """
    if context.invoked_subcommand is None:
        settings = services().settings
        keep_private(settings.home)
        logging.set_up(settings.log_dir, settings.log_level, settings.log_format)
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
