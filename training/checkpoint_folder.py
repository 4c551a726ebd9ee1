"""Stores of checkpoints, LoRA files and previews in folders, with atomic writes. For trainings without a queue."""

import re
from collections.abc import Sequence
from pathlib import Path

from training.lora.file import write_file

_NAME = re.compile(r"step-(\d+)\.safetensors")


class FolderCheckpoints:
    """A `training.ports.CheckpointStore` in a folder, which is created on the first save."""

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
        write_file(self._path(step), data)

    def drop(self, step: int) -> None:
        self._path(step).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the checkpoints, and the folder if it is then empty."""
        for step in self.steps():
            self._path(step).unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"


class FolderLoras:
    """A `training.ports.LoraStore` beside the LoRA file: `dog-step-00000120.safetensors` for `dog.safetensors`."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def save(self, step: int, data: bytes) -> None:
        write_file(self._out.with_name(f"{self._out.stem}-step-{step:08d}.safetensors"), data)


class FolderPreviews:
    """A `training.ports.PreviewStore` in a folder, which is created on the first save."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, prompt: int, png: bytes) -> None:
        write_file(self.folder / f"prompt-{prompt + 1}-step-{step:06d}.png", png)
