"""What all commands share: consoles, `--json`, errors and exit codes, and the warning about unsent messages."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

import click
from rich.console import Console

from core.brokers import broker
from core.errors import IllegalMove, ImprintError, InsufficientCredits, KeyReused, NotFound, SpecInvalid
from jobs.services import services
from storage.database import AWAY

# A pipe has no width. Do not break lines, so that grep finds them whole.
out = Console(width=None if sys.stdout.isatty() else 240)
err = Console(stderr=True)

_SEND_S = 20.0  # a broker that needs longer to take a message counts as away
_reported = 0  # how many transactions of this process `report_unsent` has handled
# As in the HTTP API: a failure code says why a job failed, and these errors fail none.
_CODES = {NotFound: "not_found", KeyReused: "key_reused", IllegalMove: "illegal_move"}


def answers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--json`; turn our errors into a message and an exit code (2 for a bad request, else 1)."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people.")
    @wraps(command)
    def run(*args: Any, as_json: bool, **kwargs: Any) -> None:
        import_module("tasks.relay")  # it sends what the command writes; not needed to list the commands
        try:
            command(*args, as_json=as_json, **kwargs)
            report_unsent()
        except ImprintError as error:
            if as_json:
                print_json({"error": _code(error), "message": error.message, "details": error.details})
            elif isinstance(error, SpecInvalid) and error.faults:
                err.print("[red]The request is invalid:[/]")
                for name, fault in error.faults.items():
                    err.print(f"  [bold]{name}[/]: {fault}", highlight=False)
            else:
                err.print(f"[red]{_code(error)}[/]: {error.message}", highlight=False)
            if isinstance(error, InsufficientCredits) and not as_json:
                err.print(
                    "An operator can grant credits: celery -A tasks.app imprint grant OWNER CREDITS", highlight=False
                )
            sys.exit(2 if isinstance(error, SpecInvalid) else 1)
        except AWAY as error:
            message = f"the database cannot be used now; try again when it is back ({error})"
            if as_json:
                print_json({"error": "unavailable", "message": message, "details": {}})
            else:
                err.print(f"[red]unavailable[/]: {message}", highlight=False)
            sys.exit(1)

    return run


def _code(error: ImprintError) -> str:
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), str(error.code))


def print_json(value: Any) -> None:
    click.echo(json.dumps(value))


def report_unsent() -> None:
    """Wait until the messages that this command wrote are sent. If no broker takes them, say that the sweep will."""
    global _reported
    sender = services().outbox_sender
    if sender is None or sender.wakes == _reported:
        return
    _reported = sender.wakes
    why = ""
    try:
        broker.check(services().settings)
    except ValueError as error:  # no stack runs with these settings, so there is nothing to wait for
        why = str(error)
    if not why and sender.flush(_SEND_S) and sender.has_sent_all:
        return
    err.print("[yellow]No broker answers. The request is stored and continues when a stack runs[/] (make up)")
    if why:
        err.print(why, markup=False, highlight=False)
