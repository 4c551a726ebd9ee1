"""What VAE and text encoders made of a picture or a caption: kept on disk by content, for all jobs and retries.

A key is the SHA-256 of the base model's fingerprint and of what was encoded, so nothing is ever out of date; a file
that is damaged is made again. The folder is kept below a size by letting the files go that were not used the longest.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from core import metrics
from training.families.family import Base, Condition, Family
from training.lora.file import write
from training.lora.safetensor import Malformed, pack, tensor, unpack
from training.ports import Example

log = logging.getLogger(__name__)

MAX_BYTES = 10 * 2**30
_LOOK_EVERY = 500  # files written between two looks at the folder's size


class Encodings:
    """The encodings of one base model in `folder`; without a folder everything is made anew."""

    def __init__(self, folder: Path | None, fingerprint: str, max_bytes: int = MAX_BYTES) -> None:
        self._folder, self._fingerprint, self._max_bytes = folder, fingerprint, max_bytes
        self.made = self.found = 0

    def moments(
        self, family: Family, base: Base, examples: Sequence[Example], check: Callable[[], None]
    ) -> list[Tensor]:
        """The moments of every picture's latents [2C, h, w] float32, on the CPU. `check` may raise between pictures."""
        known: dict[str, Tensor] = {}
        for example in examples:
            about = _shown(example)
            if about in known:
                continue
            check()
            held = self._load("picture", about)
            if held is None:
                held = {"moments": family.encode_picture(base, example)}
                self._save("picture", about, held)
            known[about] = held["moments"]
        return [known[_shown(example)] for example in examples]

    def conditions(self, family: Family, base: Base, examples: Sequence[Example]) -> list[Condition]:
        """What the denoiser is told about every picture, on the device."""
        known = {about: self._load("caption", about) for about in dict.fromkeys(map(_told, examples))}
        lacking = {_told(example): example for example in examples if known[_told(example)] is None}
        if lacking:
            made = family.encode_captions(base, list(lacking.values()))
            for about, condition in zip(lacking, made, strict=True):
                self._save("caption", about, condition)
                known[about] = condition
        return [
            {name: value.to(base.device) for name, value in (known[_told(example)] or {}).items()}
            for example in examples
        ]

    # ---- files ----

    def _path(self, kind: str, about: str) -> Path | None:
        if self._folder is None:
            return None
        key = hashlib.sha256(f"{kind}\n{self._fingerprint}\n{about}".encode()).hexdigest()
        return self._folder / key[:2] / f"{key}.safetensors"

    def _load(self, kind: str, about: str) -> dict[str, Tensor] | None:
        path = self._path(kind, about)
        if path is None or not path.is_file():
            return None
        try:
            held, facts = unpack(path.read_bytes())
            os.utime(path)  # used now: among the last to go
        except (OSError, Malformed) as error:
            log.warning("an encoding is made again: %s", error)
            return None
        self.found += 1
        metrics.ENCODINGS.add(1, kind, "found")
        return {
            name: torch.from_numpy(one.elements.copy()).to(getattr(torch, facts[name])) for name, one in held.items()
        }

    def _save(self, kind: str, about: str, values: dict[str, Tensor]) -> None:
        self.made += 1
        metrics.ENCODINGS.add(1, kind, "made")
        path = self._path(kind, about)
        if path is None:
            return
        # bfloat16 widens to float32 and comes back exactly.
        arrays = {name: tensor(value.detach().float().cpu().numpy()) for name, value in values.items()}
        kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in values.items()}
        try:
            write(path, pack(arrays, kinds))
            if self.made % _LOOK_EVERY == 1:
                self._make_room()
        except OSError as error:
            log.warning("an encoding is not kept: %s", error)

    def _make_room(self) -> None:
        assert self._folder is not None  # noqa: S101 - something was just written to it
        files = [(path, path.stat()) for path in self._folder.glob("*/*.safetensors")]
        over = sum(stat.st_size for _, stat in files) - self._max_bytes
        for path, stat in sorted(files, key=lambda file: file[1].st_mtime):
            if over <= 0:
                break
            path.unlink(missing_ok=True)
            over -= stat.st_size


def _shown(example: Example) -> str:
    """All that moments depend on."""
    return f"{example.sha256} mirrored" if example.is_mirrored else example.sha256


def _told(example: Example) -> str:
    """All that a condition depends on: SDXL is also told the picture's size."""
    return f"{example.width}x{example.height} {example.caption}"
