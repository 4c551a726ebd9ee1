"""Install a LoRA file on a ComfyUI server, and wait until the server lists it.

A server caches weights by file name: after a change of content under the same name it still draws with the old weights.
So the caller makes names unique, and an existing file is not written again.
"""

import os
import re
import shutil
import time
from pathlib import Path

from core.errors import GeneratorError, GeneratorTimeout
from core.files import atomic_file
from generation.comfyui.server import ComfyUIServer

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}\.safetensors")
_POLL_S = 0.5


def install_lora(server: ComfyUIServer, path: Path, name: str, *, folder: Path | None, timeout_s: float = 60.0) -> str:
    """Install the file on `server` as `name`; returns the name by which the server lists it.

    The assets API names files by their content, so there it is another one.

    folder: the server's `models/loras` as seen from this machine; None: upload through the assets API. Raises
    GeneratorError if the server has neither, GeneratorTimeout if it does not list the file in time.
    """
    if not _NAME.fullmatch(name):
        raise GeneratorError(f"{name[:60]!r} is not a plain file name that ends in .safetensors")
    if (listed := _listed(server, name)) is not None:
        return listed
    if folder is not None:
        copy_into_folder(path, folder, name)
    else:
        stored = server.upload_lora(path, name)
        if stored is None:
            raise GeneratorError(
                f"{server.place} does not accept uploads: start it with --enable-assets, or give its models/loras "
                "folder, as seen from this machine, with IMPRINT_COMFYUI_LORAS or --loras"
            )
        name = _last_part(stored)
    deadline = time.monotonic() + timeout_s
    while (listed := _listed(server, name)) is None:
        if time.monotonic() > deadline:
            where = f"{folder} is not its models/loras folder" if folder else "it stores its assets elsewhere"
            raise GeneratorTimeout(f"{server.place} does not list {name} after {timeout_s:g} s: perhaps {where}")
        time.sleep(_POLL_S)
    return listed


def copy_into_folder(path: Path, folder: Path, name: str) -> None:
    """Copy a file into a folder, atomically: a server may read it as soon as it appears."""
    if not folder.is_dir():
        raise GeneratorError(f"{folder} is not a folder on this machine: give the server's models/loras folder")
    try:
        with path.open("rb") as source, atomic_file(folder / name) as target:
            shutil.copyfileobj(source, target, 1 << 20)
            os.fchmod(target.fileno(), 0o644)
    except OSError as error:
        raise GeneratorError(f"{name} cannot be written to {folder}: {error.strerror}") from error


def _listed(server: ComfyUIServer, name: str) -> str | None:
    """The listed name whose last part is `name`: the server may store assets in a subfolder."""
    return next((listed for listed in server.loras() if _last_part(listed) == name), None)


def _last_part(name: str) -> str:
    return re.split(r"[/\\]", name)[-1]
