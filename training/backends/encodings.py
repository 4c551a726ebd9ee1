"""A disk cache of encoded pictures and captions, for all jobs and retries.

A key is the SHA-256 of the base model's fingerprint and the encoded content, so entries never become stale. Damaged
files are encoded again. When the folder exceeds its limit, the least recently used files are deleted.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from core.telemetry import metrics
from training.backends.encoded_files import MADE_OF
from training.families.family import Base, Condition, FamilyCode
from training.families.latents import batches
from training.lora.file import write_file
from training.lora.safetensor import Malformed, pack, tensor, unpack
from training.ports import Example

log = logging.getLogger(__name__)

MAX_BYTES = 10 * 2**30
_CHECK_SIZE_EVERY = 500  # files written between two checks of the folder's size


class Encodings:
    """The cached encodings of one base model in `folder`; without a folder nothing is cached."""

    def __init__(self, folder: Path | None, fingerprint: str, max_bytes: int = MAX_BYTES) -> None:
        self._folder, self._fingerprint, self._max_bytes = folder, fingerprint, max_bytes
        self.made = self.found = 0

    def moments(
        self, family: FamilyCode, base: Base, examples: Sequence[Example], check: Callable[[], None]
    ) -> list[Tensor]:
        """The moments of each picture's latents, [2C, h, w] float32, on the CPU. `check` may raise between batches.

        Loads the VAE if a picture is not cached.
        """
        names = [_picture_name(example, base.vae_dtype) for example in examples]
        known, missing = self._look_up("picture", names, examples)
        if missing:
            with base.encoders.awake("vae"):
                for batch in batches(list(missing.values()), base.device):
                    check()
                    for example, moments in zip(batch, family.encode_pictures(base, batch), strict=True):
                        name = _picture_name(example, base.vae_dtype)
                        known[name] = {"moments": moments}
                        self._save("picture", name, known[name], example.sha256)
        return [known[name]["moments"] for name in names]

    def conditions(self, family: FamilyCode, base: Base, examples: Sequence[Example]) -> list[Condition]:
        """The condition for the denoiser of each picture, on the device.

        Loads the text encoders if a caption is not cached.
        """
        names = [_caption_name(example) for example in examples]
        known, missing = self._look_up("caption", names, examples)
        if missing:
            made = family.encode_captions(base, list(missing.values()))
            for (name, example), condition in zip(missing.items(), made, strict=True):
                self._save("caption", name, condition, example.sha256)
                known[name] = {part: value.cpu() for part, value in condition.items()}
        return [{part: value.to(base.device) for part, value in known[name].items()} for name in names]

    def _look_up(
        self, kind: str, names: Sequence[str], examples: Sequence[Example]
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Example]]:
        """The cached values by name, and an example for each name that is not cached."""
        found = {name: self._load(kind, name) for name in dict.fromkeys(names)}
        known = {name: values for name, values in found.items() if values is not None}
        return known, {name: one for name, one in zip(names, examples, strict=True) if name not in known}

    # ---- files ----

    def _path(self, kind: str, name: str) -> Path | None:
        if self._folder is None:
            return None
        key = hashlib.sha256(f"{kind}\n{self._fingerprint}\n{name}".encode()).hexdigest()
        return self._folder / key[:2] / f"{key}.safetensors"

    def _load(self, kind: str, name: str) -> dict[str, Tensor] | None:
        path = self._path(kind, name)
        if path is None or not path.is_file():
            return None
        try:
            held, facts = unpack(path.read_bytes())
            os.utime(path)  # mark it as recently used
        except (OSError, Malformed) as error:
            log.warning("a cached encoding is damaged and is computed again: %s", error)
            return None
        self.found += 1
        metrics.ENCODINGS.add(1, kind, "found")
        return {
            part: torch.from_numpy(one.elements.copy()).to(getattr(torch, facts[part])) for part, one in held.items()
        }

    def _save(self, kind: str, name: str, values: dict[str, Tensor], made_of: str = "") -> None:
        self.made += 1
        metrics.ENCODINGS.add(1, kind, "made")
        path = self._path(kind, name)
        if path is None:
            return
        # bfloat16 widens to float32 and comes back exactly.
        arrays = {part: tensor(value.detach().float().cpu().numpy()) for part, value in values.items()}
        kinds = {part: str(value.dtype).removeprefix("torch.") for part, value in values.items()}
        try:
            write_file(path, pack(arrays, kinds | {MADE_OF: made_of}))
            if self.made % _CHECK_SIZE_EVERY == 1:
                self._make_room()
        except OSError as error:
            log.warning("an encoding is not cached: %s", error)

    def _make_room(self) -> None:
        assert self._folder is not None  # noqa: S101 - a file was just written to it
        files = [(path, path.stat()) for path in self._folder.glob("*/*.safetensors")]
        over = sum(stat.st_size for _, stat in files) - self._max_bytes
        for path, stat in sorted(files, key=lambda file: file[1].st_mtime):
            if over <= 0:
                break
            path.unlink(missing_ok=True)
            over -= stat.st_size


def _picture_name(example: Example, dtype: torch.dtype) -> str:
    """Everything that the moments depend on, besides the base model."""
    parts = [example.sha256]
    if example.is_mirrored:
        parts.append("mirrored")
    if example.prepared is not None:
        parts.append(f"{example.width}x{example.height}")
    if dtype != torch.float32:
        parts.append(str(dtype))
    return " ".join(parts)


def _caption_name(example: Example) -> str:
    """Everything that a condition depends on, besides the base model: SDXL also uses the picture's size."""
    return f"{example.width}x{example.height} {example.caption}"
