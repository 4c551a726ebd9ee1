"""`imprint fake-pod`, and `python -m fakes.ai_toolkit`: one command line for both."""

import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

ARGUMENTS = "FAKE_POD_ARGUMENTS"  # environment variable with more arguments

_EPILOG = """
\b
Try it: in one terminal
  celery -A tasks.app imprint fake-pod --port 8675 --token secret
and for the stack in another
  IMPRINT_AI_TOOLKIT_URL=http://127.0.0.1:8675 IMPRINT_AI_TOOLKIT_TOKEN=secret make up
"""


@click.command(name="fake-pod", epilog=_EPILOG)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8675, show_default=True, help="0 takes a free one.")
@click.option("--token", envvar="AI_TOOLKIT_AUTH", help="Password that clients need. Unset: everything is open.")
@click.option(
    "--trainer", type=click.Choice(["quick", "real"]), default="quick", show_default=True,
    help="quick: weights from pictures and recipe, steps by the clock. real: Imprint's own training loop, on the CPU.",
)  # fmt: skip
@click.option(
    "--base-model", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Base model folder for `real`, whatever base model a job names.",
)  # fmt: skip
@click.option("--seconds-per-step", default=0.05, show_default=True, help="For the quick trainer.")
@click.option("--loading", "loading_s", default=0.2, show_default=True, help="Seconds before a job's first step.")
@click.option(
    "--tick", "tick_s", default=0.1, show_default=True, help="Seconds between checks of the queue; a real server: 1."
)
@click.option("--slots", default=1, show_default=True, help="Concurrent jobs of a queue; a real server: 1.")
@click.option("--gpu", default="NVIDIA GeForce RTX 4090", show_default=True, help="The GPU that the server reports.")
@click.option("--old-api", is_flag=True, help="Respond as before 2026-07, and without queues as before 2025-10.")
@click.option("--faults", type=int, metavar="SEED", help="Inject faults, drawn from this seed.")
@click.option("--hang", "hang_s", default=20.0, show_default=True, help="Seconds that a hanging request hangs.")
@click.option("--ready-after", "ready_after_s", default=0.0, help="Seconds until the server is ready; 502 before that.")
@click.option("--vanish-after", "vanish_after_s", type=float, help="Seconds until the whole pod is gone.")
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path),
    help="Folder for all data, reused by the next start. Unset: a temporary folder.",
)  # fmt: skip
@click.option("--journal", type=click.Path(dir_okay=False, path_type=Path), help="One JSON line for each request.")
def fake_pod(host: str, port: int, **given: Any) -> None:
    """Serve a fake ai-toolkit server until Ctrl-C, with the API, statuses, files and pitfalls of a real one.

    With --faults: 500 and 502 responses, requests that hang, connections that break before or after a request is
    handled, interrupted downloads, trainers that fail or stall, workers that die and leave their job at `running`.
    """
    from fakes.ai_toolkit.options import FakeToolkitOptions
    from fakes.ai_toolkit.pod import serve_pod

    if given["trainer"] == "real" and given["base_model"] is None:
        raise click.UsageError(
            "--trainer real needs --base-model: python -m training.tiny.base FOLDER makes a tiny one"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until uvicorn listens to it: temporary folders go
    with tempfile.TemporaryDirectory(prefix="fake-pod-") as temporary:
        options = FakeToolkitOptions(**{**given, "folder": given["folder"] or Path(temporary)})
        serve_pod(options, host=host, port=port, announce=_announce)


def _announce(address: str) -> None:
    click.echo(f"fake ai-toolkit server on {address}")
    sys.stdout.flush()


def main() -> None:
    """The module's command line, with more arguments from the environment."""
    fake_pod.main([*sys.argv[1:], *shlex.split(os.environ.get(ARGUMENTS, ""))], prog_name="fake-pod")


COMMAND = fake_pod
