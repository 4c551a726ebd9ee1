"""Checkpoints in a folder, each whole or not at all; the last two stay. For trainings without a queue."""

import re
from collections.abc import Sequence
from pathlib import Path

from training.lora_file import write

KEPT = 2
_NAME = re.compile(r"step-(\d+)\.safetensors")


class FolderCheckpoints:
    """`training.ports.Checkpoints` over a folder, which is made when the first one is saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> Sequence[int]:
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def load(self, step: int) -> bytes:
        return self._path(step).read_bytes()

    def save(self, step: int, data: bytes) -> None:
        write(self._path(step), data)
        for old in self.steps()[:-KEPT]:
            self._path(old).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the checkpoints, and the folder if nothing else is in it."""
        for step in self.steps():
            self._path(step).unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"
