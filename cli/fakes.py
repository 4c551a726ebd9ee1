"""`imprint fake-pod`, `fake-runpod` and `fake-comfyui`: stand-in servers for development.

The wheel does not contain `fakes`, and the `celery` script puts the current folder on the path only after it has loaded
this command, so each server's own command is imported when it is called.
"""

import sys
from importlib import import_module

import click


def _fake(name: str, module: str, server: str) -> click.Command:
    @click.command(
        name=name,
        help=f"Run a fake {server} until Ctrl-C. Needs a checkout of Imprint's source; --help lists its options.",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        if "" not in sys.path and "." not in sys.path:
            sys.path.append(".")
        try:
            server_command = import_module(module).COMMAND
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith("fakes"):
                raise
            raise click.ClickException(
                f"`imprint {name}` is part of the source, not of the installed package: run it in a checkout of Imprint"
            ) from None
        server_command.main(list(arguments), prog_name=f"imprint {name}")

    return command


FAKES: tuple[click.Command, ...] = (
    _fake("fake-pod", "fakes.ai_toolkit.command", "ai-toolkit server"),
    _fake("fake-runpod", "fakes.runpod.command", "RunPod"),
    _fake("fake-comfyui", "fakes.comfyui.command", "ComfyUI server"),
)
