"""Bring a LoRA file to where a ComfyUI server finds it, and wait until it is listed.

A server keeps weights by the file's name: the same name with other content draws with the old weights. So names are
made unique by whoever names the file, and a file that is there is not written again.
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
_LOOK_S = 0.5


def install_lora(server: ComfyUIServer, path: Path, name: str, *, folder: Path | None, timeout_s: float = 60.0) -> str:
    """Have `server` list the file as `name`; gives the name that it lists it by.

    folder: the server's `models/loras` as this machine sees it; None: the server's assets API. Raises GeneratorError
    where neither is there, GeneratorTimeout where the file does not turn up.
    """
    if not _NAME.fullmatch(name):
        raise GeneratorError(f"{name[:60]!r} is no plain file name that ends in .safetensors")
    if (listed := _listed(server, name)) is not None:
        return listed
    if folder is not None:
        copy_into_folder(path, folder, name)
    elif not server.upload_lora(path, name):
        raise GeneratorError(
            f"{server.place} takes no files: start it with --enable-assets, or name its models/loras folder, as this "
            "machine sees it, with IMPRINT_COMFYUI_LORAS or --loras"
        )
    deadline = time.monotonic() + timeout_s
    while (listed := _listed(server, name)) is None:
        if time.monotonic() > deadline:
            where = f"{folder} is not its models/loras folder" if folder else "it keeps its assets elsewhere"
            raise GeneratorTimeout(f"{server.place} does not list {name} after {timeout_s:g} s; perhaps {where}")
        time.sleep(_LOOK_S)
    return listed


def copy_into_folder(path: Path, folder: Path, name: str) -> None:
    """Copy a file into a folder, whole or not at all: a server may read it the moment that it has its name."""
    if not folder.is_dir():
        raise GeneratorError(f"{folder} is no folder of this machine: it should be the server's models/loras")
    try:
        with path.open("rb") as source, atomic_file(folder / name) as target:
            shutil.copyfileobj(source, target, 1 << 20)
            os.fchmod(target.fileno(), 0o644)
    except OSError as error:
        raise GeneratorError(f"{name} cannot be written to {folder}: {error.strerror}") from error


def _listed(server: ComfyUIServer, name: str) -> str | None:
    """By its last part, for assets may be kept in a folder below."""
    return next((listed for listed in server.loras() if re.split(r"[/\\]", listed)[-1] == name), None)
