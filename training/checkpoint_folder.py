"""Stores of checkpoints, LoRA files and previews in folders, with atomic writes. For trainings without a queue.

The checkpoints in a folder belong to the training whose options are in `options.json` beside them. Checkpoints of other
options are kept in subfolders, so a training that is started again with its old options resumes.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import SpecInvalid
from training.lora.file import write_file
from training.lora.metadata import recipe_json
from training.lora.safetensor import Malformed, check_layout
from training.spec import TrainSpec

_NAME = re.compile(r"step-(\d+)\.safetensors")
_OPTIONS = "options.json"
_PLACE, _DATASET = "place of the base model", "pictures or captions"

Options = Mapping[str, Any]


def options_of(spec: TrainSpec, dataset_sha256: str) -> dict[str, Any]:
    """The options that must be equal in two runs if the second is to resume from the first."""
    recipe: dict[str, Any] = json.loads(recipe_json(spec))
    return recipe | {_PLACE: spec.base_model, _DATASET: dataset_sha256}


def require_writable(out: Path, resume_dir: Path | None) -> None:
    """Check, before the first step, that the file and its checkpoints can be written. Raises SpecInvalid."""
    faults = {}
    if os.path.isdir(out):  # noqa: PTH112 - says no for names that the system does not take, where Path raises
        faults["--out"] = "is a folder"
    elif out.suffix != ".safetensors":
        faults["--out"] = "must end in .safetensors: programs find LoRA files by that"
    elif (why := _why_not_writable(out.parent, f".{out.name}.checkpoints")) is not None:
        faults["--out"] = f"cannot be written: {why}"
    if resume_dir is not None and (why := _why_not_writable(resume_dir, "step-00000000.safetensors.part")) is not None:
        faults["--resume-dir"] = f"cannot be written: {why}"
    if faults:
        raise SpecInvalid.of(faults)


def _why_not_writable(folder: Path, name: str) -> str | None:
    """Why a file of that name cannot be created in `folder`, which is created if it does not exist; else None."""
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    probe = folder / f"{name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        return f"{folder} is not a folder"
    except OSError as error:
        return f"{folder}: {error.strerror}"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        return f"{folder}: {error.strerror}"
    finally:
        for parent in made:  # the training creates it when it has something to write
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
    return None


class FolderCheckpoints:
    """A `training.ports.CheckpointStore` in a folder, which is created on the first save."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._claimed: Options | None = None

    def steps(self) -> Sequence[int]:
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def load(self, step: int) -> bytes:
        return self._path(step).read_bytes()

    def save(self, step: int, data: bytes) -> None:
        if self._claimed is not None and self._options() != self._claimed:
            write_file(self.folder / _OPTIONS, json.dumps(self._claimed, sort_keys=True).encode())
        write_file(self._path(step), data)

    def drop(self, step: int) -> None:
        self._path(step).unlink(missing_ok=True)

    def claim(self, options: Options) -> list[str]:
        """Take the folder for a training with these options; returns notes for the user. Raises OSError.

        Checkpoints of other options are set aside, and those of the same options brought back.
        """
        notes = []
        before = self._options()
        if self.steps() and not (self._wrote(options) if before is None else before == options):
            aside = self.folder / (_digest(before) if before is not None else "older")
            step = self.steps()[-1]
            _move(self.folder, aside)
            changed = ", ".join(_differences(before, options)) if before is not None else "options or pictures"
            notes.append(f"restarts at step 0, because of other {changed}; the checkpoint of step {step} is in {aside}")
        if not self.steps() and (own := self.folder / _digest(options)).is_dir():
            _move(own, self.folder)
            own.rmdir()
        self._claimed = options
        return notes

    def _wrote(self, options: Options) -> bool:
        """Whether a training with these options wrote the newest checkpoint, according to its metadata."""
        recipe = {name: value for name, value in options.items() if name not in (_PLACE, _DATASET)}
        text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        try:
            _, facts = check_layout(self._path(self.steps()[-1]))
        except (Malformed, OSError):
            return False
        own = facts.get("identity.spec"), facts.get("identity.dataset")
        return own == (hashlib.sha256(text.encode()).hexdigest(), options[_DATASET])

    def _options(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / _OPTIONS).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def remove(self) -> None:
        """Delete the checkpoints, and the folder if it is then empty."""
        for step in self.steps():
            self._path(step).unlink(missing_ok=True)
        (self.folder / _OPTIONS).unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"


def _move(source: Path, target: Path) -> None:
    """Move checkpoints and their options."""
    target.mkdir(parents=True, exist_ok=True)
    for path in [*source.glob("step-*.safetensors"), source / _OPTIONS]:
        if path.is_file():
            path.replace(target / path.name)


def _digest(options: Options) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]


def _differences(before: Options, after: Options) -> list[str]:
    """The options that differ, with their values if these are short."""
    found = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old != new:
            is_short = len(f"{old}{new}") < 60
            found.append(f"{name} ({old}, now {new})" if is_short else name)
    return found


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
