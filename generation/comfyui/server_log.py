"""What a ComfyUI server logs about a LoRA file: it loads what it knows of it, and refuses no file."""

import re
from collections.abc import Collection

from core.errors import GeneratorError
from generation.comfyui.server import ComfyUIServer

_NOT_LOADED = re.compile(r"lora key not loaded: (\S+)")
_KEPT_LINES = 300  # of ComfyUI's log: after so many the first are gone
_NO_FIT = re.compile(r"ERROR (lora|loha|lokr|glora|oft|boft) (\S+)")  # a layer of another shape


class ServerLog:
    """The lines that a server logs from now on, if it shows its log."""

    def __init__(self, server: ComfyUIServer) -> None:
        self._server = server
        self._last = max((time for time, _ in self._lines()), default="")

    def notes(self, keys: Collection[str]) -> list[str]:
        """What it has logged since about a file with these tensors. A server that has it in its cache logs nothing."""
        return lora_notes([line for time, line in self._lines() if time > self._last], keys)

    def _lines(self) -> list[tuple[str, str]]:
        try:
            return self._server.log_lines() or []
        except GeneratorError:  # the log is a bonus
            return []


def lora_notes(lines: Collection[str], keys: Collection[str]) -> list[str]:
    """How many of the file's tensors were not loaded, and how many layers of the model have another shape."""
    notes = []
    missed = {found[1] for line in lines if (found := _NOT_LOADED.search(line))} & set(keys)
    if missed:
        least = "at least " if len(lines) >= _KEPT_LINES else ""
        notes.append(
            f"the server did not load {least}{len(missed)} of the {len(keys)} tensors of the LoRA, such as "
            f"{min(missed)[:120]}"
        )
    misfits = {found[2] for line in lines if (found := _NO_FIT.search(line))}
    if misfits:
        notes.append(
            f"{len(misfits)} layers of the model have another shape than the LoRA, such as {min(misfits)[:120]}: is it "
            "of another family?"
        )
    return notes
