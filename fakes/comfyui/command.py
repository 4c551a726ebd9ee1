"""`imprint fake-comfyui`, and `python -m fakes.comfyui`: one command line for both."""

import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import click


@click.command(name="fake-comfyui")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8188, show_default=True, help="0 takes a free one.")
@click.option("--assets", is_flag=True, help="Accept files through the assets API, as a real one with --enable-assets.")
@click.option("--old-assets", is_flag=True, help="The same, with the tags of the first builds that had it.")
@click.option("--no-websocket", is_flag=True, help="Without events, as behind a proxy without websockets.")
@click.option("--converter", is_flag=True, help="Convert workflows of the editor, as a custom node does.")
@click.option("--seconds-per-step", default=0.02, show_default=True, help="For every sampler.")
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path),
    help="Folder for all data: models/loras, output. Unset: a temporary folder.",
)  # fmt: skip
def fake_comfyui(host: str, port: int, no_websocket: bool, folder: Path | None, **given: Any) -> None:
    """Serve a fake ComfyUI until Ctrl-C: the API of a real one, with pictures that show what would be drawn.

    It rejects what a real one rejects, with the same messages: unknown nodes, wrong links, missing files. LoRA keys
    that the base model does not have are logged, not rejected.
    """
    import uvicorn

    from fakes.comfyui.api import ComfyUIApi, FakeComfyUIOptions

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until uvicorn listens to it: temporary folders go
    with tempfile.TemporaryDirectory(prefix="fake-comfyui-") as temporary:
        api = ComfyUIApi(FakeComfyUIOptions(folder or Path(temporary), websocket=not no_websocket, **given))
        with socket.create_server((host, port), backlog=128) as listening:
            click.echo(f"fake ComfyUI on http://{host}:{listening.getsockname()[1]}, files in {api.folders.root}")
            sys.stdout.flush()
            config = uvicorn.Config(
                api.app(), log_level="error", access_log=False, lifespan="off", timeout_graceful_shutdown=1
            )
            try:
                uvicorn.Server(config).run(sockets=[listening])
            finally:
                api.queue.close()


COMMAND = fake_comfyui
