"""How many slots per step are worth it on a GPU: measured during training, for each base model, shape and device.

A cohort grows along 1, 2, 4, 8, 16, 32 slots as jobs join. The duration of its steps gives the rate of each size. If
twice the slots are hardly faster, the cohort stops growing, and further jobs wait for a slot: that way, jobs finish
earlier. The rates are stored in a file with the encodings, for the next worker.
"""

import json
import logging
from collections.abc import Hashable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from training.lora.file import write_file

log = logging.getLogger(__name__)

FILE = "ladder.json"
WORTH = 1.1  # the factor by which twice the slots must raise the rate
_SKIPPED = 5  # steps after a change of slots that are not measured: they warm up or are recorded
_ENOUGH = 20  # steps that are measured


class SlotLadder:
    """The measured rates of one base model on one device. Used by the engine's thread alone."""

    def __init__(self, base: str, device: torch.device) -> None:
        """base: the fingerprint of the base model."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self._key = f"{base} on {name}"
        self._device = device
        self._base_bytes = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        self._rates: dict[str, dict[int, float]] = {}  # by shape and slots: slots trained per second
        self._seconds: list[float] = []  # of the latest steps
        self._at: tuple[str, int] = ("", 0)  # the shape and slots of the latest steps
        self._loaded: set[Path] = set()

    def load(self, folder: Path | None) -> None:
        """Load earlier rates from `folder`, once. A file that cannot be read is ignored."""
        if folder is None or folder in self._loaded:
            return
        self._loaded.add(folder)
        for shape, rates in _load(folder).get(self._key, {}).items():
            self._rates.setdefault(shape, {}).update({int(slots): float(rate) for slots, rate in rates.items()})

    def pays(self, shape: Hashable, slots: int) -> bool:
        """Whether `slots` slots have a sufficiently higher rate than half of them. True if it is not known yet."""
        rates = self._rates.get(repr(shape), {})
        return not (slots in rates and slots // 2 in rates) or rates[slots] >= WORTH * rates[slots // 2]

    def fits(self, slots: int, now: int) -> bool:
        """Whether `slots` slots fit into memory, estimated from the peak with the `now` slots of the cohort."""
        if self._device.type != "cuda":
            return True
        peak = torch.cuda.max_memory_allocated(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        room = free + torch.cuda.memory_reserved(self._device) - peak
        return (peak - self._base_bytes) / now * (slots - now) < room

    def note(self, shape: Hashable, slots: int, seconds: float, folder: Path | None) -> None:
        """Record the duration of a step with `slots` slots. After enough steps, the rate is stored in `folder`."""
        at = (repr(shape), slots)
        if at != self._at:
            self._at, self._seconds = at, []
        self._seconds.append(seconds)
        if len(self._seconds) != _SKIPPED + _ENOUGH or slots in self._rates.get(at[0], {}):
            return
        self._rates.setdefault(at[0], {})[slots] = slots / median(self._seconds[_SKIPPED:])
        if not self.pays(shape, slots):
            log.info("%d slots train hardly more than %d: cohorts grow no further", slots, slots // 2)
        self._save(folder)

    def _save(self, folder: Path | None) -> None:
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / FILE, json.dumps({**_load(folder), self._key: self._rates}, indent=1).encode())
        except OSError as error:
            log.warning("the measured rates of slots are not stored: %s", error)


def _load(folder: Path) -> dict[str, Any]:
    try:
        held = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}
